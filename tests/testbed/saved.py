"""What a run starts from: QEMU, kernel, root image and saved state, cached by hash."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from machine import DISK_SIZE, Machine, MachineError

HERE = pathlib.Path(__file__).resolve().parent
KERNEL_BUILD = HERE.parent.parent / "kernel-config" / "build"
INPUTS = ("build-root", "containerd.toml", "containerds", "init", "kernel.config", "machine.py",
          "newer-containerds", "newer-qemu", "saved.py", "suites")
PACKAGES = ("linux-source-6.12", "qemu-system-x86")
BOOT_SECONDS_MAX = 300


def say(text):
    """Tell on stderr what takes long."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def input_hash():
    """Hash everything that goes in; Debian's packages by the build scripts' lists."""
    digest = hashlib.sha256()
    for path in (*(HERE / name for name in INPUTS), KERNEL_BUILD):
        digest.update(path.read_bytes())
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES]
    digest.update(subprocess.run(query, check=True, capture_output=True).stdout)
    # The saved guest knows the clock rate of the processor it was saved on.
    with open("/proc/cpuinfo", "rb") as cpuinfo:
        digest.update(next((line for line in cpuinfo if line.startswith(b"model name")), b""))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(folder):
    """Hold the folder's lock: builds of the same thing wait for each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(path, build):
    """Build a file under a temporary name and rename it, unless it is there."""
    if not path.exists():
        new = path.with_suffix(".new")
        build(new)
        new.rename(path)


def blank_disk(path):
    """Make an empty job disk; sparse, so its size costs nothing."""
    with open(path, "wb") as disk:
        disk.truncate(DISK_SIZE)


class Saved:
    """The cached testbed: paths of its parts, built when absent."""

    def __init__(self, mode):
        cache = os.environ.get("WASMVM_CACHE") or pathlib.Path.home() / ".cache" / "wasmvm"
        self.folder = pathlib.Path(cache) / f"testbed-{input_hash()}"
        self.mode = mode
        self.qemu = self.folder / "qemu"
        self.kernel = self.folder / "vmlinux"
        self.root = self.folder / "root.ext4"
        self.state = self.folder / f"state-{mode.clock}-cgroup-{mode.cgroup}"

    def prepare(self):
        """Build what is missing."""
        if self.state.exists():
            return
        with locked(self.folder):
            make(self.qemu, self.unpack_qemu)
            make(self.kernel, self.build_kernel)
            make(self.root, self.build_root)
            make(self.state, self.boot_and_save)

    def unpack_qemu(self, out):
        """Take a newer QEMU than this machine's."""
        subprocess.run([HERE / "newer-qemu", out], check=True)

    def build_kernel(self, out):
        """Build the testbed's kernel by the guest kernel's recipe."""
        fragment = HERE / "kernel.config"
        subprocess.run([KERNEL_BUILD, "--fragment", fragment, out], check=True)

    def build_root(self, out):
        """Build the root image from Debian packages."""
        say("building the root image (seconds)")
        subprocess.run([HERE / "build-root", out], check=True)

    def boot_and_save(self, out):
        """Boot to "ready" and save the machine there."""
        say(f"booting once to save the state for clock {self.mode.clock}, cgroup {self.mode.cgroup} (a minute)")
        deadline = time.monotonic() + BOOT_SECONDS_MAX
        with tempfile.TemporaryDirectory() as scratch, open(self.folder / "boot.log", "wb+") as log:
            disk = pathlib.Path(scratch) / "disk"
            blank_disk(disk)
            machine = self.start(disk, log, saved=None)
            try:
                machine.start_qmp()
                if not machine.pump({"control": lambda data: b"ready" in data or None}, deadline):
                    raise MachineError(f"no containerd within {BOOT_SECONDS_MAX} s, see {log.name}")
                machine.save(out, deadline)
            finally:
                machine.end()

    def start(self, disk, log, saved):
        """Start a machine over the cached parts."""
        return Machine(self.qemu, self.kernel, self.root, disk, self.mode, log, saved)

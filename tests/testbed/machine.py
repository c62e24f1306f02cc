"""One QEMU process of the testbed: its command line, its streams and QMP.

Every stream is a socket pair made here and handed to QEMU as a descriptor, so no
run leaves a socket in the file system and two runs never meet.
"""

import json
import selectors
import socket
import subprocess
import time
import typing

MEMORY_MIB = 3072
# Where things are on the job disk; the init script has the same figures.
MIB = 1 << 20
FILES_OFFSET = 1 * MIB
OUT_OFFSET = 2048 * MIB
DISK_SIZE = 4096 * MIB

KERNEL_LINE = (
    "console=ttyS0 root=/dev/vda ro init=/testbed/init panic=-1 tsc=reliable "
    "random.trust_cpu=on rcupdate.rcu_expedited=1 "
    # One processor: a halted guest must not spin while its device threads wait.
    "kvm.halt_poll_ns=0"
)

# What the EPYC model has and QEMU's TCG has not; naming it spares a page of warnings.
NOT_EMULATED = (
    "rdseed sha-ni fxsr-opt misalignsse 3dnowprefetch osvw topoext nrip-save xsavec"
).split()

# Streams by name; virtio-serial ports in the order of the init script.
PORTS = ("control", "stdout", "stderr", "log")


class Mode(typing.NamedTuple):
    """What tells one saved state from another."""

    clock: str  # "plain", or "icount" for virtual time
    cgroup: str  # the hierarchy that init mounts: "v2" or "v1"


class MachineError(Exception):
    """The testbed itself failed, not the job in it."""


def command_line(qemu, kernel, root, disk, mode, fds):
    """Return QEMU's arguments; the same for the save and for every restore."""
    line = f"{KERNEL_LINE} testbed.cgroup={mode.cgroup}"
    cpu = ",".join(["EPYC", "+svm", *(f"-{name}" for name in NOT_EMULATED)])
    if mode.clock == "icount":
        # rdrand would bring real randomness in; the clock must be virtual.
        cpu += ",-rdrand"
        clock = ["-accel", "tcg", "-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm"]
    else:
        clock = ["-accel", "tcg,thread=multi", "-rtc", "base=utc"]
    # Never outlives the driver, however that ends.
    args = ["setpriv", "--pdeathsig", "KILL", str(qemu)]
    args += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    args += ["-machine", "q35", *clock, "-smp", "1", "-m", str(MEMORY_MIB), "-cpu", cpu]
    args += ["-kernel", str(kernel), "-append", line]
    # First of the virtio devices: its ports are named /dev/vport0p1 and so on.
    args += ["-device", "virtio-serial-pci"]
    args += ["-drive", f"if=none,id=root,file={root},format=raw,readonly=on"]
    args += ["-device", "virtio-blk-pci,drive=root"]
    args += ["-drive", f"if=none,id=job,file={disk},format=raw,cache=unsafe"]
    args += ["-device", "virtio-blk-pci,drive=job"]
    for name, fd in fds.items():
        args += ["-chardev", f"socket,id={name},fd={fd}"]
    for number, name in enumerate(PORTS, start=1):
        args += ["-device", f"virtserialport,chardev={name},nr={number},name={name}"]
    args += ["-serial", "chardev:kernel", "-serial", "chardev:shell"]
    return args + ["-mon", "chardev=qmp,mode=control"]


class Machine:
    """A running QEMU; `streams` maps a name to this side of its socket pair."""

    def __init__(self, qemu, kernel, root, disk, mode, log, saved=None):
        names = (*PORTS, "kernel", "shell", "qmp")
        pairs = {name: socket.socketpair() for name in names}
        self.streams = {name: pair[0] for name, pair in pairs.items()}
        fds = {name: pair[1].fileno() for name, pair in pairs.items()}
        args = command_line(qemu, kernel, root, disk, mode, fds)
        inherited = list(fds.values())
        if saved:
            inherited.append(saved.fileno())
            args += ["-incoming", f"fd:{saved.fileno()}"]
        self.process = subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherited
        )
        for _, theirs in pairs.values():
            theirs.close()
        self.qmp_lines = self.streams.pop("qmp").makefile("rw", encoding="utf-8")
        self.log = log

    def qmp(self, command, **arguments):
        """Send one QMP command and return its answer; events are passed over."""
        self.qmp_lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.qmp_lines.flush()
        for line in self.qmp_lines:
            message = json.loads(line)
            if "error" in message:
                raise MachineError(f"QMP {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
        raise MachineError(f"QEMU ended during QMP {command}")

    def start_qmp(self):
        """Read the greeting and leave negotiation."""
        if not self.qmp_lines.readline():
            raise MachineError("QEMU ended before it spoke QMP")
        self.qmp("qmp_capabilities")

    def await_migration(self, deadline):
        """Wait until a migration, out or in, is complete."""
        while True:
            status = self.qmp("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise MachineError(f"migration: {status}")
            time.sleep(0.02)

    def resume(self, deadline):
        """Let a machine that was started from a saved state run."""
        self.start_qmp()
        self.await_migration(deadline)
        self.qmp("cont")

    def save(self, path, deadline):
        """Stop the machine and write its state to a file."""
        self.qmp("stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        self.qmp("migrate", uri=f"exec:cat > '{path}'")
        self.await_migration(deadline)

    def pump(self, handlers, deadline):
        """Hand stream data to `handlers[name](data)` until one returns something.

        Streams without a handler are written to the log. Returns None at the
        deadline; raises MachineError when the machine ends by itself.
        """
        with selectors.DefaultSelector() as selector:
            for name, stream in self.streams.items():
                selector.register(stream, selectors.EVENT_READ, handlers.get(name, self.log_data))
            for file, handler in handlers.items():
                if not isinstance(file, str):
                    selector.register(file, selectors.EVENT_READ, handler)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if (result := self.feed(key, selector)) is not None:
                        return result
        return None

    def feed(self, key, selector):
        """Read once from a ready stream and call its handler."""
        is_stream = isinstance(key.fileobj, socket.socket)
        try:
            data = key.fileobj.recv(1 << 16) if is_stream else key.fileobj.read(1 << 12)
        except ConnectionResetError:
            data = b""
        if not data:
            if is_stream:
                raise MachineError("the testbed's machine ended by itself")
            selector.unregister(key.fileobj)
            return None
        return key.data(data)

    def log_data(self, data):
        """Append data to the log."""
        self.log.write(data)
        self.log.flush()

    def end(self):
        """End QEMU; nothing in it is worth keeping."""
        self.process.kill()
        self.process.wait()

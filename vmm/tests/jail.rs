//! The jail, looked at from outside: the real binary in real namespaces. Needs root.
//!
//! `unshare` and `mount` stand in for the shim. The VMM is held still behind a full standard error
//! pipe, after its jail is closed and before it reports that `/dev/null` is no `/dev/kvm`. Its file server, a child,
//! has nothing to do then.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wasmvm_protocol::control::{
    self, BootConfig, Credentials, FILE_CAPABILITIES, FromVmm, Role, ToVmm,
};

const DEADLINE: Duration = Duration::from_secs(20);

struct Vmm {
    outer: Child,
    control: OwnedFd,
    stderr: PipeReader,
}

/// Starts the VMM as PID 1 of new namespaces after the shell commands in `setup`, run in `tree`.
fn start(tree: &Path, setup: &str) -> Vmm {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes namespaces: run it as root"
    );
    let (shim, vmm) = control::pair().unwrap();
    let (stderr, writer) = io::pipe().unwrap();
    fill(&writer);
    let script = format!(
        "{setup}\ncd . && exec 3<&0 9</etc/passwd && exec '{}' </dev/null",
        env!("CARGO_BIN_EXE_wasmvm-vmm")
    );
    let outer = Command::new("unshare")
        .args([
            "--pid", "--fork", "--mount", "--ipc", "--uts", "sh", "-ec", &script,
        ])
        .current_dir(tree)
        .stdin(Stdio::from(vmm))
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    Vmm {
        outer,
        control: shim,
        stderr,
    }
}

/// Fills a pipe, so that its next writer waits for a reader.
fn fill(mut pipe: &PipeWriter) {
    let size = rustix::pipe::fcntl_getpipe_size(pipe).unwrap();
    pipe.write_all(&vec![b'.'; size]).unwrap();
}

const MOUNT_TREE: &str = "mount --bind . . && cd \"$PWD\"";

fn boot_config(role: Role) -> BootConfig {
    BootConfig {
        role,
        ram_mib: 256,
        huge_pages: false,
        console: false,
        credentials: Credentials::default(),
    }
}

fn send_boot(vmm: &Vmm) {
    send_boot_with(vmm, "dev/null", boot_config(Role::Task));
}

/// The kernel's path is relative to the root that the VMM starts with: the shim opens what it hands over
/// in the VMM's own mount namespace.
fn send_boot_with(vmm: &Vmm, kernel: &str, config: BootConfig) {
    until(|| vmm.find_pid().is_some_and(is_wasmvm));
    let open = |path: &str| File::open(format!("/proc/{}/root/{path}", vmm.pid())).unwrap();
    let (null, kernel) = (open("dev/null"), open(kernel));
    let fd = null.as_fd();
    control::send(
        &vmm.control,
        &ToVmm::Boot(config),
        &[fd, kernel.as_fd(), fd],
    )
    .unwrap();
}

/// No longer the shell that sets it up.
fn is_wasmvm(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name == "wasmvm-vmm\n")
}

fn receive(vmm: &Vmm) -> FromVmm {
    control::hear(&vmm.control)
        .unwrap()
        .expect("the VMM is gone")
}

impl Vmm {
    /// Its PID here, outside: the only child of `unshare`.
    fn pid(&self) -> u32 {
        self.find_pid().unwrap()
    }

    /// `None` before `unshare` has started it.
    fn find_pid(&self) -> Option<u32> {
        child_of(self.outer.id())
    }

    /// The directory in /proc of the file server, when the jail is closed round it.
    fn file_server(&self) -> String {
        until(|| child_of(self.pid()).is_some());
        let proc = format!("/proc/{}", child_of(self.pid()).unwrap());
        until_jailed(&proc);
        proc
    }

    fn write_maps(&self) {
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", self.pid()), "0 0 4294967295\n").unwrap();
        }
        control::send(&self.control, &ToVmm::MapsWritten, &[]).unwrap();
    }

    /// Walks through the start until the jail is closed; answers with its directory in /proc.
    fn jail(&self) -> String {
        self.jail_as(Credentials::default())
    }

    fn jail_as(&self, credentials: Credentials) -> String {
        let config = BootConfig {
            credentials,
            ..boot_config(Role::Task)
        };
        send_boot_with(self, "dev/null", config);
        assert_eq!(receive(self), FromVmm::NeedMaps);
        self.write_maps();
        let proc = format!("/proc/{}", self.pid());
        until_jailed(&proc);
        proc
    }

    fn end(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        drop(self.control);
        self.stderr.read_to_string(&mut text).unwrap();
        (
            self.outer.wait().unwrap(),
            text.trim_start_matches('.').to_owned(),
        )
    }
}

fn child_of(parent: u32) -> Option<u32> {
    let parent = parent.to_string();
    let is_child = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The second field behind the name (proc(5)).
        let behind_name = stat.rsplit(") ").next().unwrap_or_default();
        behind_name.split(' ').nth(1) == Some(&parent)
    };
    let child = names("/proc").into_iter().find(is_child);
    child.and_then(|pid| pid.parse().ok())
}

fn until_jailed(proc: &str) {
    until(|| {
        let status = fs::read_to_string(format!("{proc}/status"));
        status.unwrap().contains("NoNewPrivs:\t1")
    });
}

/// Waits for what the kernel tells nobody about.
fn until(condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "did not come about in {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn names(dir: impl AsRef<Path>) -> BTreeSet<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

fn tree() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("tenant-file"), "x").unwrap();
    // As a container's root is: whoever the VMM becomes may enter it.
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
    tree
}

/// Lines of /proc/PID/status (`proc(5)`).
fn assert_status(proc: &str, lines: &[&str]) {
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    for line in lines {
        assert!(
            status.lines().any(|found| found.trim_end() == *line),
            "no {line:?} in {status}"
        );
    }
}

/// What parses queues: no capability, no group, an id that nobody on the host has.
fn assert_is_nobody(proc: &str) {
    let ids = "2002875245\t2002875245\t2002875245\t2002875245";
    let none = "0000000000000000";
    let lines = [
        format!("Uid:\t{ids}"),
        format!("Gid:\t{ids}"),
        "Groups:".to_owned(),
        format!("CapPrm:\t{none}"),
        format!("CapEff:\t{none}"),
        format!("CapBnd:\t{none}"),
        format!("CapInh:\t{none}"),
        format!("CapAmb:\t{none}"),
    ];
    assert_status(proc, &lines.each_ref().map(String::as_str));
}

#[test]
fn the_file_server_keeps_what_its_program_may_do_to_files_and_becomes_who_it_is() {
    let root = Credentials {
        // All that there are: a privileged container's.
        capabilities: u64::MAX,
        ..Credentials::default()
    };
    assert_eq!(FILE_CAPABILITIES, 0xdf);
    let program = Credentials {
        uid: 1000,
        gid: 100,
        groups: vec![2000, 7],
        ..Credentials::default()
    };
    // `drop: [ALL]` with what serves one's own files only.
    let owner = Credentials {
        capabilities: 1 << 3,
        ..Credentials::default()
    };
    for (credentials, set, uid, groups) in [
        (root, "00000000000000df", "Uid:\t0\t0\t0\t0", "Groups:"),
        (
            Credentials::default(),
            "0000000000000000",
            "Uid:\t0\t0\t0\t0",
            "Groups:",
        ),
        (owner, "0000000000000008", "Gid:\t0\t0\t0\t0", "Groups:"),
        (
            program,
            "0000000000000000",
            "Uid:\t1000\t1000\t1000\t1000",
            "Groups:\t7 2000",
        ),
    ] {
        let tree = tree();
        let vmm = start(tree.path(), MOUNT_TREE);
        let vmm_proc = vmm.jail_as(credentials);
        let proc = vmm.file_server();
        let sets = ["CapPrm", "CapEff", "CapBnd"].map(|name| format!("{name}:\t{set}"));
        assert_status(&proc, &sets.each_ref().map(String::as_str));
        assert_status(
            &proc,
            &["CapAmb:\t0000000000000000", "NoNewPrivs:\t1", uid, groups],
        );
        assert_is_nobody(&vmm_proc);
        let (status, text) = vmm.end();
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(!text.contains("jail:"), "{text}");
    }
}

#[test]
fn the_vmm_lives_in_namespaces_of_its_own() {
    let tree = tree();
    let vmm = start(tree.path(), MOUNT_TREE);
    let proc = vmm.jail();
    assert_status(
        &proc,
        &[
            "CapInh:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Umask:\t0000",
        ],
    );
    let file_server = vmm.file_server();
    for namespace in ["user", "pid", "mnt", "ipc", "uts"] {
        let link = |proc: &str| fs::read_link(format!("{proc}/ns/{namespace}")).unwrap();
        assert_ne!(link(&proc), link("/proc/self"), "{namespace}");
        assert_eq!(link(&proc), link(&file_server), "{namespace}");
    }
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "1").count(),
        2,
        "{core}"
    );
    let (status, text) = vmm.end();
    assert_eq!(status.code(), Some(1), "{text}");
}

#[test]
fn the_file_server_sees_the_tree_and_nothing_of_the_host_and_the_vmm_holds_neither() {
    let tree = tree();
    let vmm = start(tree.path(), MOUNT_TREE);
    let proc = vmm.jail();
    let file_server = vmm.file_server();
    for proc in [&proc, &file_server] {
        assert_eq!(
            names(format!("{proc}/root")),
            BTreeSet::from(["tenant-file".to_owned()])
        );
        let mounts = fs::read_to_string(format!("{proc}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert_eq!(
            fs::read_link(format!("{proc}/cwd")).unwrap(),
            Path::new("/")
        );
    }
    let tree_id = fs::metadata(tree.path())
        .map(|meta| (meta.dev(), meta.ino()))
        .unwrap();
    let open = |proc: &str| {
        let open = names(format!("{proc}/fd"))
            .into_iter()
            .map(|fd| format!("{proc}/fd/{fd}"));
        let is_tree = |path: &String| {
            fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == tree_id)
        };
        let (of_tree, others): (Vec<_>, Vec<_>) = open.partition(is_tree);
        // A process that is starting may close a descriptor between the two looks: it is not held.
        let target = |path: &String| match fs::read_link(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            target => Some(target.unwrap().display().to_string()),
        };
        let targets = others.iter().filter_map(target);
        (of_tree.len(), targets.collect::<Vec<_>>())
    };
    let (of_tree, others) = open(&proc);
    let known = ["/null", "/dev/null", "pipe:", "socket:", "anon_inode:"];
    let is_known = |target: &String| known.iter().any(|known| target.starts_with(known));
    assert!(
        !others.is_empty() && others.iter().all(is_known),
        "{others:?}"
    );
    assert_eq!(of_tree, 0);

    // Standard input, output and error, the VMM, its own descriptors; no control socket, no /dev/kvm.
    until(|| open(&file_server).0 > 0);
    let (_, others) = open(&file_server);
    let sockets = others.iter().filter(|target| target.starts_with("socket:"));
    assert_eq!(sockets.count(), 1, "{others:?}");
    let nulls = others.iter().filter(|target| target.ends_with("/null"));
    assert_eq!(nulls.count(), 1, "{others:?}");
    let is_own = |target: &String| target.ends_with("/fd") || target == "/";
    assert!(
        others
            .iter()
            .all(|target| is_known(target) || is_own(target)),
        "{others:?}"
    );
    vmm.end();
}

/// As the kernel does it for whatever is left in a PID namespace.
#[test]
fn the_file_server_ends_with_the_vmm() {
    let tree = tree();
    let vmm = start(tree.path(), MOUNT_TREE);
    vmm.jail();
    let file_server = vmm.file_server();
    let pid = Pid::from_raw(vmm.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    until(|| !Path::new(&file_server).exists());
    vmm.end();
}

/// Neither where the executable lies nor where /dev/null does.
#[test]
fn the_guests_kernel_cannot_be_changed_through_its_descriptor() {
    let tree = tree();
    let elsewhere = "mount -t tmpfs none /mnt && echo kernel > /mnt/kernel";
    let vmm = start(tree.path(), &format!("{elsewhere}\n{MOUNT_TREE}"));
    send_boot_with(&vmm, "mnt/kernel", boot_config(Role::Task));
    assert_eq!(receive(&vmm), FromVmm::NeedMaps);
    let descriptors = format!("/proc/{}/fd", vmm.pid());
    let is_kernel = |fd: &String| {
        let target = fs::read_link(format!("{descriptors}/{fd}"));
        target.is_ok_and(|target| target.ends_with("kernel"))
    };
    let kernel = names(&descriptors).into_iter().find(is_kernel).unwrap();
    let mode = fs::Permissions::from_mode(0o777);
    let error = fs::set_permissions(format!("{descriptors}/{kernel}"), mode).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    vmm.end();
}

#[test]
fn a_file_of_a_mount_out_of_sight_is_refused() {
    let tree = tree();
    let vmm = start(tree.path(), MOUNT_TREE);
    until(|| vmm.find_pid().is_some_and(is_wasmvm));
    let kernel = File::open("/dev/null").unwrap();
    let fd = kernel.as_fd();
    control::send(
        &vmm.control,
        &ToVmm::Boot(boot_config(Role::Task)),
        &[fd, fd, fd],
    )
    .unwrap();
    let (status, text) = vmm.end();
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("is on no mount in sight"), "{text}");
}

#[test]
fn a_compilers_vmm_writes_no_file_longer_than_an_artifact() {
    let limit = |role| {
        let tree = tree();
        let vmm = start(tree.path(), MOUNT_TREE);
        send_boot_with(&vmm, "dev/null", boot_config(role));
        assert_eq!(receive(&vmm), FromVmm::NeedMaps);
        let limits = fs::read_to_string(format!("/proc/{}/limits", vmm.pid())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max file size"));
        let hard = line.unwrap().split_whitespace().nth(4).unwrap().to_owned();
        vmm.end();
        hard
    };
    assert_eq!(
        limit(Role::Compiler),
        wasmvm_vmm::vm::SLOT_BYTES_MAX.to_string()
    );
    assert_eq!(limit(Role::Task), "unlimited");
}

#[test]
fn a_read_only_tree_can_be_the_root() {
    let tree = tree();
    let vmm = start(
        tree.path(),
        &format!("{MOUNT_TREE} && mount -o remount,bind,ro ."),
    );
    let proc = vmm.jail();
    let new_file = fs::write(format!("{proc}/root/new"), "x").unwrap_err();
    assert_eq!(new_file.kind(), io::ErrorKind::ReadOnlyFilesystem);
    vmm.end();
}

#[test]
fn a_tree_with_a_proc_mount_is_refused() {
    let tree = tree();
    fs::create_dir(tree.path().join("p")).unwrap();
    let vmm = start(
        tree.path(),
        &format!("{MOUNT_TREE} && mount -t proc proc p"),
    );
    vmm.jail();
    let (status, text) = vmm.end();
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("/p rw"), "{text}");
}

#[test]
fn a_working_directory_that_is_no_mount_is_refused() {
    let tree = tree();
    let vmm = start(tree.path(), "");
    send_boot(&vmm);
    let (status, text) = vmm.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("cannot make the file tree the root"),
        "{text}"
    );
}

#[test]
fn sigterm_ends_it_though_it_is_pid_1() {
    let tree = tree();
    let vmm = start(tree.path(), MOUNT_TREE);
    send_boot(&vmm);
    assert_eq!(receive(&vmm), FromVmm::NeedMaps);
    let pid = Pid::from_raw(vmm.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(vmm.end().0.code(), Some(143));
}

#[test]
fn the_end_of_the_control_socket_ends_it() {
    let tree = tree();
    let vmm = start(tree.path(), MOUNT_TREE);
    send_boot(&vmm);
    assert_eq!(receive(&vmm), FromVmm::NeedMaps);
    let (status, text) = vmm.end();
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("end of file"), "{text}");
}

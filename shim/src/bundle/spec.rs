//! A task: the typed form of its bundle.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Capabilities, Hooks};

/// Everything of the bundle that matters to wasmvm, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskSpec {
    /// `ociVersion`: version 1, any minor.
    pub oci_version: String,
    /// Program to run, with its arguments and user.
    pub process: ProcessSpec,
    /// Host name; empty when the spec has none.
    pub hostname: String,
    /// Limits of the task.
    pub resources: Resources,
    /// `linux.cgroupsPath` as given; `None` means the default.
    pub cgroup_path: Option<String>,
    /// Preference of the host's OOM killer for the VMM, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Network namespace that the task's sockets would live in.
    pub network: Network,
    /// Settings written in that namespace before any program runs in it.
    pub sysctls: Vec<Sysctl>,
    /// Mounts that enter the tree, in the spec's order.
    pub mounts: Vec<TreeMount>,
    /// Paths of the tree whose content is hidden; absolute, not the root itself.
    pub masked_paths: Vec<PathBuf>,
    /// Paths of the tree that are read-only; absolute, not the root itself.
    pub readonly_paths: Vec<PathBuf>,
    /// Labels of the host's security modules.
    pub labels: Labels,
    /// Whether the guest mounts its own device files over the tree's `/dev`.
    pub guest_dev: bool,
    /// Whether the guest mounts its own proc over the tree's `/proc`.
    pub guest_proc: bool,
    /// Whether preview 1 modules get their working directory as the preopened directory `.`.
    pub preopen_cwd: bool,
    /// Root directory on the host; absolute.
    pub rootfs: PathBuf,
    /// Whether the tree's root is read-only; mounts have their own setting.
    pub rootfs_readonly: bool,
    /// Programs of the operator's, to run on the host.
    pub hooks: Hooks,
    /// Annotations of the bundle, as given.
    pub annotations: BTreeMap<String, String>,
}

/// A program to run: `process` of the bundle, or the spec of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessSpec {
    /// The program and its arguments; never empty, without zero bytes.
    pub args: Vec<String>,
    /// Environment: `KEY=value`, without zero bytes, each key once.
    pub env: Vec<String>,
    /// Working directory; absolute, without `.` and `..`.
    pub cwd: PathBuf,
    /// User and groups that the program runs as.
    pub user: User,
    /// Capabilities beyond that user's rights; `None`: an exec's spec that has none, so that the task's apply.
    pub capabilities: Option<Capabilities>,
}

/// User and groups: `process.user`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    /// User id in the guest and towards the files.
    pub uid: u32,
    /// Group id in the guest and towards the files.
    pub gid: u32,
    /// Supplementary groups, by id.
    pub additional_gids: Vec<u32>,
    /// Mask of new files' modes, at most 0777.
    pub umask: Option<u32>,
}

impl TaskSpec {
    /// The memory limit, bytes: exactly what the cgroup's becomes. At least `MEMORY_BYTES_MIN` of
    /// [`super::memory`].
    #[must_use]
    pub(crate) fn memory_bytes_max(&self) -> Option<u64> {
        self.resources.memory.and_then(Limit::at)
    }
}

/// A limit that was given, expressly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// No limit: a negative number in OCI.
    Unlimited,
    /// A limit of this much, in the field's unit.
    At(u64),
}

impl Limit {
    /// The limit's number; `None` when unlimited.
    #[must_use]
    pub(crate) const fn at(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::At(value) => Some(value),
        }
    }
}

/// `linux.resources`, as far as it is honoured. `None` is "not given": for a new task the kernel's own
/// value, for a running one the present value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Memory of the cgroup, bytes.
    pub memory: Option<Limit>,
    /// Memory and swap together, bytes, as OCI counts; at least `memory`.
    pub memory_swap: Option<Limit>,
    /// CPU time and processors.
    pub cpu: CpuLimits,
    /// Most processes and threads of the VMM.
    pub pids: Option<Limit>,
    /// Further files of the cgroup (`linux.resources.unified`), by name.
    pub files: BTreeMap<String, String>,
}

/// `linux.resources.cpu`, as far as it is honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuLimits {
    /// CPU time in one period, microseconds.
    pub quota_us: Option<Limit>,
    /// Period in which the quota may be used, microseconds.
    pub period_us: Option<u64>,
    /// Weight in cgroup v1's scale, 2 to 262144.
    pub shares: Option<u64>,
    /// Processors to run on, as a list (`0-3,7`).
    pub cpus: Option<String>,
    /// Memory nodes to use, as a list.
    pub mems: Option<String>,
}

/// Network namespace that the VMM runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// The host's: the spec has no network namespace.
    Host,
    /// A new, empty namespace.
    New,
    /// The namespace at this path.
    Path(PathBuf),
}

/// A setting of the network namespace's kernel side (`linux.sysctl`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sysctl {
    /// Name, as the spec has it.
    pub name: String,
    /// Path below `/proc/sys`, relative, without `.` and `..`.
    pub path: PathBuf,
    /// Value to write to the path.
    pub value: String,
}

/// Labels that the host's security modules give to the task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    /// AppArmor profile of the process: `process.apparmorProfile`.
    pub apparmor_profile: Option<String>,
    /// SELinux label of the process: `process.selinuxLabel`, with the type of a VM.
    pub selinux_process: Option<String>,
    /// SELinux label of the mounts: `linux.mountLabel`.
    pub selinux_mount: Option<String>,
}

/// A mount of the spec that enters the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeMount {
    /// Place inside the tree; absolute, symlinks followed inside the tree.
    pub destination: PathBuf,
    /// Content of the mount.
    pub source: MountSource,
    /// Whether the mount is read-only.
    pub read_only: bool,
}

/// Content of a [`TreeMount`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountSource {
    /// A file or directory of the host.
    Bind {
        /// Path on the host: absolute, or relative to the bundle made absolute.
        path: PathBuf,
        /// Whether the mounts below the path come along (`rbind`).
        recursive: bool,
    },
    /// An empty tmpfs of the host.
    Tmpfs(TmpfsOptions),
}

/// Options of a tmpfs, as its kernel driver takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TmpfsOptions {
    /// `key=value` options for the file system itself (`size`, `mode`, `uid`, `gid`, `nr_inodes`).
    pub parameters: Vec<(String, String)>,
    /// `noexec`: the host starts no program in it; Wasm is only read.
    pub no_exec: bool,
    /// `nodiratime`: times of access of directories do not change.
    pub no_directory_times: bool,
    /// Times of access of files: `relatime`, `noatime` or `strictatime`.
    pub access_times: AccessTimes,
    /// `tmpcopyup`: the tmpfs starts with a copy of what it hides.
    pub copy_up: bool,
}

/// When a file's time of access changes, mount(8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AccessTimes {
    /// When the time of access is older than the file's last change.
    #[default]
    Relative,
    /// At no access to the file.
    Never,
    /// At every access to the file.
    Always,
}

//! What one task is: the typed form of its bundle.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Capabilities;
use crate::hooks::Hooks;

/// Everything of the bundle that matters here, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// `ociVersion`, 1 point something.
    pub oci_version: String,
    /// What runs, and as whom.
    pub process: ProcessSpec,
    /// Host name; empty when the spec has none.
    pub hostname: String,
    /// What it may use.
    pub resources: Resources,
    /// `linux.cgroupsPath` as given; none means the default.
    pub cgroup_path: Option<String>,
    /// How likely the host's OOM killer takes the VMM, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Where the task's sockets would live.
    pub network: Network,
    /// What is written in that namespace before anything runs in it.
    pub sysctls: Vec<Sysctl>,
    /// What is mounted into the tree, in the spec's order.
    pub mounts: Vec<TreeMount>,
    /// Paths of the tree that show nothing; absolute, not the root itself.
    pub masked_paths: Vec<PathBuf>,
    /// Paths of the tree where nothing may be changed; absolute, not the root itself.
    pub readonly_paths: Vec<PathBuf>,
    /// Labels of the host's security modules.
    pub labels: Labels,
    /// The guest mounts its own device files over the tree's `/dev`.
    pub guest_dev: bool,
    /// The guest mounts its own proc over the tree's `/proc`.
    pub guest_proc: bool,
    /// Preview 1 modules get their working directory as the preopened directory `.`.
    pub preopen_cwd: bool,
    /// The root directory on the host; absolute.
    pub rootfs: PathBuf,
    /// The tree's root is read-only; mounts decide for themselves.
    pub rootfs_readonly: bool,
    /// Programs of the operator's to run on the host.
    pub hooks: Hooks,
    /// Annotations, as given.
    pub annotations: BTreeMap<String, String>,
}

/// One program to run: `process` of the bundle, or the spec of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The program and its arguments; never empty, without zero bytes.
    pub args: Vec<String>,
    /// `KEY=value`, without zero bytes, each key once.
    pub env: Vec<String>,
    /// Working directory; absolute, without `.` and `..`.
    pub cwd: PathBuf,
    /// Who the program runs as.
    pub user: User,
    /// What it may do beyond that user's rights; `None`: an exec's spec that leaves it to its task's.
    pub capabilities: Option<Capabilities>,
}

/// `process.user`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id in the guest and towards the files.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Mask of new files' modes, at most 0777.
    pub umask: Option<u32>,
}

impl TaskSpec {
    /// The memory limit, bytes: exactly what the cgroup's becomes. At least `MEMORY_BYTES_MIN` of
    /// [`super::memory`].
    #[must_use]
    pub fn memory_bytes_max(&self) -> Option<u64> {
        self.resources.memory.and_then(Limit::at)
    }
}

/// A limit that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// None, expressly.
    Unlimited,
    /// This much.
    At(u64),
}

impl Limit {
    /// The number, if there is one.
    #[must_use]
    pub const fn at(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::At(value) => Some(value),
        }
    }
}

/// `linux.resources`, as far as it is honoured. `None` is "not given": for a new task the kernel's own
/// value, for a running one the present value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Memory, bytes.
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
pub struct CpuLimits {
    /// CPU time in one period, microseconds.
    pub quota_us: Option<Limit>,
    /// The period, microseconds.
    pub period_us: Option<u64>,
    /// Weight in cgroup v1's scale, 2 to 262144.
    pub shares: Option<u64>,
    /// Processors to run on, as a list (`0-3,7`).
    pub cpus: Option<String>,
    /// Memory nodes to use, as a list.
    pub mems: Option<String>,
}

/// The network namespace the VMM runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The spec has no network namespace: the host's is meant.
    Host,
    /// A new, empty one.
    New,
    /// The one at this path.
    Path(PathBuf),
}

/// One setting of the network namespace's kernel side (`linux.sysctl`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// As the spec has it.
    pub name: String,
    /// Below `/proc/sys`, relative, without `.` and `..`.
    pub path: PathBuf,
    /// What is written there.
    pub value: String,
}

/// What the host's security modules are to call the task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// `process.apparmorProfile`.
    pub apparmor_profile: Option<String>,
    /// `process.selinuxLabel`, with the type of a VM.
    pub selinux_process: Option<String>,
    /// `linux.mountLabel`.
    pub selinux_mount: Option<String>,
}

/// One mount of the spec that enters the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeMount {
    /// Where, inside the tree; absolute, symlinks followed inside the tree.
    pub destination: PathBuf,
    /// What.
    pub source: MountSource,
    /// Whether nothing in it may be changed.
    pub read_only: bool,
}

/// What a [`TreeMount`] shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A file or directory of the host.
    Bind {
        /// Absolute, or relative to the bundle made absolute.
        path: PathBuf,
        /// With the mounts below it (`rbind`).
        recursive: bool,
    },
    /// An empty tmpfs of the host.
    Tmpfs(TmpfsOptions),
}

/// Options of a tmpfs, as its kernel driver takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// `key=value` options for the file system itself (`size`, `mode`, `uid`, `gid`, `nr_inodes`).
    pub parameters: Vec<(String, String)>,
    /// `noexec`: programs in it cannot be started on the host's word; Wasm is only read.
    pub no_exec: bool,
    /// `nodiratime`.
    pub no_directory_times: bool,
    /// `relatime`, `noatime`, `strictatime`.
    pub access_times: AccessTimes,
    /// `tmpcopyup`: what the tmpfs hides is seen in it, and can be changed.
    pub copy_up: bool,
}

/// When a file's time of access changes, mount(8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessTimes {
    /// When it is older than the file's last change.
    #[default]
    Relative,
    /// Never.
    Never,
    /// With every access.
    Always,
}

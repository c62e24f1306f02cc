//! The steps that a journal has, as JSON.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::bundle::{Hook, HookState};

/// A step on the host whose effect outlives the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// The task is that of this bundle: two containerds may each have a task of the same id.
    Bundle {
        /// Absolute path of the bundle's directory.
        path: PathBuf,
        /// Id of the pod that the task belongs to; a pod's sandbox has its own id here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod: Option<String>,
    },
    /// A cgroup, as earlier versions wrote it down: by its path alone, and before it was made.
    Cgroup {
        /// Absolute path of the cgroup's directory.
        path: PathBuf,
    },
    /// Directories of cgroups, parents included, do not exist and are about to be made. No process is in
    /// the directories before [`Step::CgroupHeld`].
    CgroupWanted {
        /// Absolute paths of the directories, the topmost first.
        paths: Vec<PathBuf>,
    },
    /// The task has its cgroup: a directory in each hierarchy.
    CgroupHeld {
        /// The directories that this task has made. All processes in these directories are the task's.
        made: Vec<DirectoryIdentity>,
        /// The directories that existed, and had no process in them when the task joined.
        joined: Vec<DirectoryIdentity>,
    },
    /// A limit of a joined directory is about to be changed for the first time.
    CgroupLimit {
        /// The joined directory with the limit.
        directory: DirectoryIdentity,
        /// Name of the limit's file in the directory, as in `memory.max`.
        file: String,
        /// Content of the file before the change, to be written back in the end.
        value: String,
    },
    /// The holder of a pod's namespaces runs.
    Holder {
        /// Pid of the holder on the host.
        pid: u32,
        /// Start time of the holder, in the unit of [`Step::Vmm`]'s.
        start_time: u64,
    },
    /// The task's VMM runs.
    Vmm {
        /// Pid of the VMM on the host.
        pid: u32,
        /// Field 22 of `/proc/PID/stat`, clock ticks since boot: tells the process from a later one
        /// of the same pid.
        start_time: u64,
    },
    /// A hook of `Create` is about to run: from now on the poststop hooks are owed, once all else is undone.
    Poststop {
        /// The poststop hooks of `config.json`, in their order.
        hooks: Vec<Hook>,
        /// The state that the hooks read from standard input.
        state: HookState,
    },
    /// A poststop hook was started.
    PoststopHook {
        /// Index of the hook in [`Step::Poststop`]'s list, from 0.
        index: usize,
        /// Pid of the hook on the host.
        pid: u32,
        /// Start time of the hook, in the unit of [`Step::Vmm`]'s.
        start_time: u64,
    },
    /// The init program has ended.
    Exit(ExitRecord),
    /// All steps before are undone; a cgroup, process or file of the same name from now on is somebody else's.
    Released,
}

/// The exit of the init program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Exit status: the program's own, or 128 + signal.
    pub status: u32,
    /// Time of the exit by the host's clock, nanoseconds since the Unix epoch.
    pub exited_at_ns: u64,
}

impl ExitRecord {
    /// The record of an exit at this moment.
    #[must_use]
    pub(crate) fn now(status: u32) -> Self {
        Self::at(status, SystemTime::now())
    }

    /// The record of an exit at a moment of the host's clock.
    #[must_use]
    pub(super) fn at(status: u32, exited_at: SystemTime) -> Self {
        let since_epoch = exited_at.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since_epoch.unwrap_or(Duration::ZERO).as_nanos();
        Self {
            status,
            exited_at_ns: u64::try_from(nanos).unwrap_or(u64::MAX),
        }
    }
}

/// A directory as the journal names it. The kernel gives a number of cgroupfs to no second directory
/// before the next boot (64 bits, counted up, `fs/kernfs/dir.c`), so a later directory of the same path has
/// another identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirectoryIdentity {
    /// Absolute path of the directory.
    pub path: PathBuf,
    /// `st_ino` of the directory (stat(2)).
    pub inode: u64,
}

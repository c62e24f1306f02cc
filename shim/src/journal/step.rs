//! The steps that a journal has, as JSON.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::bundle::{Hook, HookState};

/// One step that outlives the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// The task is that of this bundle: two containerds may each have one of the same id.
    Bundle {
        /// Its directory, absolute.
        path: PathBuf,
    },
    /// A cgroup, as earlier versions wrote it down: by its path alone, and before it was made.
    Cgroup {
        /// Its directory, absolute.
        path: PathBuf,
    },
    /// These directories of cgroups, parents included, do not exist and are about to be made. Nobody is in
    /// them before [`Step::CgroupHeld`].
    CgroupWanted {
        /// Absolute, the topmost first.
        paths: Vec<PathBuf>,
    },
    /// The task has its cgroup: a directory in each hierarchy.
    CgroupHeld {
        /// Made by this task. Whatever runs in them is ours.
        made: Vec<DirectoryIdentity>,
        /// Somebody's, and empty before.
        joined: Vec<DirectoryIdentity>,
    },
    /// A limit of a joined directory is about to be changed for the first time.
    CgroupLimit {
        /// The directory.
        directory: DirectoryIdentity,
        /// Its file.
        file: String,
        /// What stood in it, and is to stand in it again.
        value: String,
    },
    /// The task's VMM runs.
    Vmm {
        /// On the host.
        pid: u32,
        /// Field 22 of `/proc/PID/stat`, clock ticks since boot: tells the process from a later one
        /// of the same pid.
        start_time: u64,
    },
    /// A hook of `Create` is about to run: from now on these are owed, once all else is undone.
    Poststop {
        /// As in `config.json`.
        hooks: Vec<Hook>,
        /// What they are told.
        state: HookState,
    },
    /// One of them was started.
    PoststopHook {
        /// Its place in the list.
        index: usize,
        /// On the host.
        pid: u32,
        /// As of [`Step::Vmm`].
        start_time: u64,
    },
    /// The init program has ended.
    Exit(ExitRecord),
    /// All before is undone; what has its name from now on is somebody else's.
    Released,
}

/// How the init program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// The module's own code, or 128 + signal.
    pub status: u32,
    /// Nanoseconds since the Unix epoch.
    pub exited_at_ns: u64,
}

impl ExitRecord {
    /// An exit that happens now.
    #[must_use]
    pub(crate) fn now(status: u32) -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since_epoch.unwrap_or(Duration::ZERO).as_nanos();
        Self {
            status,
            exited_at_ns: u64::try_from(nanos).unwrap_or(u64::MAX),
        }
    }
}

/// Name of a directory in the journal. The kernel gives a number of cgroupfs to no second directory
/// before the next boot (64 bits, counted up, `fs/kernfs/dir.c`), so a later directory of the same path has
/// another identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirectoryIdentity {
    /// Absolute path of the directory.
    pub path: PathBuf,
    /// `st_ino` of the directory (stat(2)).
    pub inode: u64,
}

//! What the shim has done to the host for one task, written before it does it.
//!
//! `/run/wasmvm/<namespace>/<id>/journal`, one JSON object a line, only ever appended to. After a
//! crash [`crate::cleanup`] reads it from the end and undoes each step; every step can be undone
//! whether or not it was really taken. The directory goes last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::hooks::{Hook, HookState};

/// Where the state of all tasks lies.
pub const STATE_ROOT: &str = "/run/wasmvm";
/// A journal is at most this long, bytes: a few short lines, and the poststop hooks
/// (`HOOKS_BYTES_MAX` of [`crate::bundle`]).
const JOURNAL_BYTES_MAX: u64 = 1 << 20;
/// How often a namespace's directory that another task removes meanwhile is made again.
const CREATE_TRIES_MAX: usize = 64;

/// One step that outlives the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The task is that of this bundle: two containerds may each have one of the same id.
    Bundle {
        /// Its directory, absolute.
        path: PathBuf,
    },
    /// This cgroup is about to be made. Whatever runs in it is ours.
    Cgroup {
        /// Its directory, absolute.
        path: PathBuf,
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
pub struct ExitRecord {
    /// The module's own code, or 128 + signal.
    pub status: u32,
    /// Nanoseconds since the Unix epoch.
    pub exited_at_ns: u64,
}

impl ExitRecord {
    /// An exit that happens now.
    #[must_use]
    pub fn now(status: u32) -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since_epoch.unwrap_or(Duration::ZERO).as_nanos();
        Self {
            status,
            exited_at_ns: u64::try_from(nanos).unwrap_or(u64::MAX),
        }
    }
}

/// The journal of one task, open for appending.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A leftover, or another shim's task.
    #[error("task state {0} exists already; remove the task of this id first")]
    Exists(PathBuf),
    /// Disk full, permissions, …
    #[error("cannot {action} the task state {path}")]
    State {
        /// `create`, `write`, `read` or `remove`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

impl JournalError {
    /// containerd's code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Exists(_) => ErrorCode::AlreadyExists,
            Self::State { .. } => ErrorCode::Internal,
        }
    }
}

impl Journal {
    /// Starts the journal of a new task below `root`.
    ///
    /// # Errors
    /// [`JournalError::Exists`] when the id's directory is there already.
    pub fn create(root: &Path, namespace: &str, id: &str) -> Result<Self, JournalError> {
        let directory = directory(root, namespace, id);
        let failed = |source| state_error("create", &directory, source);
        make_directory(&directory).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => JournalError::Exists(directory.clone()),
            _ => failed(source),
        })?;
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join("journal"))
            .map_err(failed)?;
        // Held as long as this shim lives: the mark of a task that is somebody's. The file is new, so it
        // waits for nobody but an `is_held` of this moment.
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(Self { directory, file })
    }

    /// Writes one step, in one call, before it is taken.
    ///
    /// # Errors
    /// [`JournalError::State`].
    pub fn record(&self, step: &Step) -> Result<(), JournalError> {
        write(&self.file, step).map_err(|source| state_error("write", &self.directory, source))
    }
}

/// Writes a step into the journal of a task, whoever holds it.
///
/// # Errors
/// [`JournalError::State`].
pub fn append(root: &Path, namespace: &str, id: &str, step: &Step) -> Result<(), JournalError> {
    let path = directory(root, namespace, id).join("journal");
    let file = OpenOptions::new().append(true).open(&path);
    file.and_then(|file| write(&file, step))
        .map_err(|source| state_error("write", &path, source))
}

fn write(mut file: &File, step: &Step) -> io::Result<()> {
    let mut line = serde_json::to_vec(step)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// The steps recorded for a task, oldest first; `None` when it has no state. A line that was cut off
/// by a crash is passed over: its step was not taken.
///
/// # Errors
/// [`JournalError::State`].
pub fn read(root: &Path, namespace: &str, id: &str) -> Result<Option<Vec<Step>>, JournalError> {
    let path = directory(root, namespace, id).join("journal");
    let read = || -> io::Result<String> {
        let file = File::open(&path)?;
        io::read_to_string(io::Read::take(file, JOURNAL_BYTES_MAX))
    };
    match read() {
        Ok(text) => Ok(Some(
            text.lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
        )),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            // The directory alone: the shim died between making it and the file.
            let there = path.parent().is_some_and(Path::exists);
            Ok(there.then(Vec::new))
        }
        Err(source) => Err(state_error("read", &path, source)),
    }
}

/// Whether a living shim holds the task of this id. It asks by a shared lock, so that two who ask do not
/// take each other for the holder.
#[must_use]
pub fn is_held(root: &Path, namespace: &str, id: &str) -> bool {
    let file = File::open(directory(root, namespace, id).join("journal"));
    // What cannot be opened is held by nobody: a shim makes and locks it in one go.
    file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Removes a task's state directory, if any.
///
/// # Errors
/// [`JournalError::State`].
pub fn forget(root: &Path, namespace: &str, id: &str) -> Result<(), JournalError> {
    remove(&directory(root, namespace, id))
}

/// The state directory of one task.
fn directory(root: &Path, namespace: &str, id: &str) -> PathBuf {
    root.join(namespace).join(id)
}

/// The namespace's directory may vanish with its last task meanwhile; then it is made again.
fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    let mut tries = 1;
    loop {
        if let Some(parent) = directory.parent()
            && let Err(err) = builder.recursive(true).create(parent)
            && tries == CREATE_TRIES_MAX
        {
            return Err(err);
        }
        match builder.recursive(false).create(directory) {
            Err(err) if err.kind() == io::ErrorKind::NotFound && tries < CREATE_TRIES_MAX => {
                tries += 1;
            }
            result => return result,
        }
    }
}

fn remove(directory: &Path) -> Result<(), JournalError> {
    match fs::remove_dir_all(directory) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(state_error("remove", directory, err));
        }
        _ => {}
    }
    // The namespace's directory goes with its last task; not empty is the usual answer.
    if let Some(parent) = directory.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn state_error(action: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::State {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tempfile::tempdir;

    fn vmm() -> Step {
        Step::Vmm {
            pid: 42,
            start_time: 7,
        }
    }

    #[test]
    fn steps_come_back_in_order() {
        let root = tempdir().unwrap();
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        let cgroup = Step::Cgroup {
            path: "/sys/fs/cgroup/default/web".into(),
        };
        journal.record(&cgroup).unwrap();
        journal.record(&vmm()).unwrap();
        let steps = read(root.path(), "default", "web").unwrap().unwrap();
        assert_eq!(steps, [cgroup, vmm()]);
        forget(root.path(), "default", "web").unwrap();
        assert_eq!(read(root.path(), "default", "web").unwrap(), None);
        assert!(!root.path().join("default").exists());
    }

    #[test]
    fn a_line_cut_off_by_a_crash_is_passed_over() {
        let root = tempdir().unwrap();
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        journal.record(&vmm()).unwrap();
        (&journal.file).write_all(b"{\"exit\":{\"sta").unwrap();
        assert_eq!(
            read(root.path(), "default", "web").unwrap().unwrap(),
            [vmm()]
        );
    }

    #[test]
    fn a_second_task_of_the_id_is_refused() {
        let root = tempdir().unwrap();
        let _first = Journal::create(root.path(), "default", "web").unwrap();
        let second = Journal::create(root.path(), "default", "web").unwrap_err();
        assert_eq!(second.code(), ErrorCode::AlreadyExists);
    }

    #[test]
    fn the_last_task_of_a_namespace_does_not_take_the_next_one_with_it() {
        let root = tempdir().unwrap();
        let tasks = ["web", "db"].map(|id| {
            let root = root.path().to_owned();
            std::thread::spawn(move || {
                (0..200).try_for_each(|_| {
                    Journal::create(&root, "default", id)?;
                    forget(&root, "default", id)
                })
            })
        });
        for task in tasks {
            task.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_journal_is_held_as_long_as_its_shim_lives() {
        let root = tempdir().unwrap();
        assert!(!is_held(root.path(), "default", "web"));
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        assert!(is_held(root.path(), "default", "web"));
        drop(journal);
        // A process that another test is just spawning holds a copy until its exec.
        let start = Instant::now();
        while is_held(root.path(), "default", "web") {
            assert!(start.elapsed() < Duration::from_secs(10), "still held");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_directory_without_a_journal_is_an_empty_journal() {
        let root = tempdir().unwrap();
        fs::create_dir_all(root.path().join("default/web")).unwrap();
        assert_eq!(
            read(root.path(), "default", "web").unwrap(),
            Some(Vec::new())
        );
        forget(root.path(), "default", "web").unwrap();
        assert_eq!(read(root.path(), "default", "web").unwrap(), None);
    }
}

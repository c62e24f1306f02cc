//! The journal of one task: each step that the shim takes on the host, written before the step is taken.
//!
//! The file is `/run/wasmvm/tasks/<namespace>/<id>/journal`: one JSON object a line, only ever appended to. After a
//! crash [`crate::cleanup`] reads the journal from the end and undoes each step; every step can be undone
//! whether or not the step was really taken. The directory is removed last.
//!
//! A compile, which ends before the task does, has a journal of its own beside the task's
//! ([`Journal::part`]), removed with all that it names: so no journal grows with the task's age.

mod containers;
mod hold;
mod step;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use rustix::io::Errno;

pub(crate) use self::containers::{containers_of, leave};
#[cfg(test)]
pub(crate) use self::hold::is_held;
pub(crate) use self::hold::{LeftOver, is_pod, take_over};
pub(crate) use self::step::{DirectoryIdentity, ExitRecord, Step};

use crate::error::{Coded, ErrorCode, chain};

/// The directory of all state, in the host's memory: the tasks' journals, the artifacts, the compile queue.
pub(crate) const STATE_ROOT: &str = "/run/wasmvm";
/// The directory of all tasks' state, apart from all else, whatever containerd's namespaces are called.
pub(crate) const TASKS_ROOT: &str = "/run/wasmvm/tasks";
/// A journal is at most this long, bytes: a few short lines, and the poststop hooks
/// (`HOOKS_BYTES_MAX` of [`crate::bundle`]).
const JOURNAL_BYTES_MAX: u64 = 1 << 20;
/// Name of the journal in the task's directory.
const JOURNAL_FILE: &str = "journal";
/// Begin of the name of a part's file, beside the journal.
const PART_PREFIX: &str = "journal-";
/// Most tries to make a directory that another task removes meanwhile.
const CREATE_TRIES_MAX: usize = 1024;

/// The journal of one task, or of a part of its life, open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The id has a journal already: of another shim's task, or left by a dead shim; holds the task's directory.
    #[error("task state {0} exists already; remove the task of this id first")]
    Exists(PathBuf),
    /// A system call on the task's state failed, as when the disk is full.
    #[error("cannot {action} the task state {path}")]
    State {
        /// `create`, `write`, `read`, `list` or `remove`.
        action: &'static str,
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Coded for JournalError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Exists(_) => ErrorCode::AlreadyExists,
            Self::State { .. } => ErrorCode::Internal,
        }
    }
}

impl Journal {
    /// Starts the journal of a new task of this bundle, and perhaps of a pod, below `root`. The file gets its name once the first line is written and
    /// the lock is taken, so that nobody ever sees a journal whose task seems to be nobody's.
    ///
    /// # Errors
    /// [`JournalError::Exists`] when the id has a journal already.
    pub(crate) fn create(
        root: &Path,
        namespace: &str,
        id: &str,
        bundle: &Path,
        pod: Option<&str>,
    ) -> Result<Self, JournalError> {
        if let Some(pod) = pod.filter(|pod| *pod != id) {
            containers::enter(root, namespace, pod, id)?;
        }
        let directory = directory(root, namespace, id);
        let first = Step::Bundle {
            path: bundle.to_owned(),
            pod: pod.map(str::to_owned),
        };
        let path = directory.join(JOURNAL_FILE);
        let mut tries = 1;
        loop {
            match try_create(&directory, &first) {
                Ok(file) => return Ok(Self { path, file }),
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(JournalError::Exists(directory));
                }
                Err(err) if is_of_removed_directory(&err) && tries < CREATE_TRIES_MAX => {
                    tries += 1;
                    std::thread::yield_now();
                }
                Err(source) => return Err(state_error("create", &path, source)),
            }
        }
    }

    /// Starts a journal of its own, beside this one, for something that ends before the task does.
    ///
    /// # Errors
    /// [`JournalError::State`], also when there is a part of this name.
    pub(crate) fn part(&self, name: &str) -> Result<Self, JournalError> {
        let path = self.path.with_file_name(format!("{PART_PREFIX}{name}"));
        let file = create_file(&path).map_err(|source| state_error("create", &path, source))?;
        Ok(Self { path, file })
    }

    /// Absolute path of the journal's file.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the exit of init for a `delete` after the shim's death. A failure is logged: containerd hears of the exit
    /// all the same.
    pub(crate) fn record_exit(&self, status: u32, exited_at: SystemTime) {
        let exit = ExitRecord::at(status, exited_at);
        if let Err(error) = self.record(&Step::Exit(exit)) {
            tracing::warn!(error = chain(&error), "cannot keep the exit");
        }
    }

    /// Writes one step, in one call, before it is taken.
    ///
    /// # Errors
    /// [`JournalError::State`].
    pub(crate) fn record(&self, step: &Step) -> Result<(), JournalError> {
        write(&self.file, step).map_err(|source| state_error("write", &self.path, source))
    }
}

/// Writes a step into the journal of a task, whoever holds it.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn append(
    root: &Path,
    namespace: &str,
    id: &str,
    step: &Step,
) -> Result<(), JournalError> {
    let path = directory(root, namespace, id).join(JOURNAL_FILE);
    let file = OpenOptions::new().append(true).open(&path);
    file.and_then(|file| write(&file, step))
        .map_err(|source| state_error("write", &path, source))
}

/// Whether the error may say that the directory of a new file was removed since it was found: `ENOENT`, or
/// `EPERM` of ext4 for an unnamed file (`__ext4_new_inode`, linux/fs/ext4/ialloc.c).
fn is_of_removed_directory(err: &io::Error) -> bool {
    let errno = err.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::PERM))
}

/// Makes the directory and all above it. `NotFound` when one of them is removed meanwhile.
fn make_directories(directory: &Path) -> io::Result<()> {
    let above: Vec<_> = directory.ancestors().collect();
    for directory in above
        .into_iter()
        .rev()
        .filter(|path| path.parent().is_some())
    {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the journal's file: without a name it is locked and written, then linked. The lock is held as long as this
/// shim lives, and marks the task as held.
fn try_create(directory: &Path, first: &Step) -> io::Result<File> {
    make_directories(directory)?;
    let file: File = rustix::fs::open(
        directory,
        OFlags::TMPFILE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?
    .into();
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    write(&file, first)?;
    // linkat(2) of a descriptor needs CAP_DAC_READ_SEARCH; of this link it needs no capability.
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = directory.join(JOURNAL_FILE);
    linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(file)
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn write(mut file: &File, step: &Step) -> io::Result<()> {
    let mut line = serde_json::to_vec(step)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// The steps recorded for a task, oldest first; `None` when the task has no state. A line that was cut off
/// by a crash is passed over: the step of that line was not taken.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn read(
    root: &Path,
    namespace: &str,
    id: &str,
) -> Result<Option<Vec<Step>>, JournalError> {
    let path = directory(root, namespace, id).join(JOURNAL_FILE);
    match read_file(&path) {
        Ok(steps) => Ok(Some(steps)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            // The directory alone: the shim died between making it and the file.
            let there = path.parent().is_some_and(Path::exists);
            Ok(there.then(Vec::new))
        }
        Err(source) => Err(state_error("read", &path, source)),
    }
}

fn read_file(path: &Path) -> io::Result<Vec<Step>> {
    let file = File::open(path)?;
    let mut text = Vec::new();
    io::Read::take(file, JOURNAL_BYTES_MAX).read_to_end(&mut text)?;
    // By bytes: a line may be cut off within a character.
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// The paths of a task's parts: of the compiles that have not ended, or whose shim has died.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn parts(root: &Path, namespace: &str, id: &str) -> Result<Vec<PathBuf>, JournalError> {
    let directory = directory(root, namespace, id);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(state_error("list", &directory, source)),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let is_part = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(PART_PREFIX.as_bytes())
    };
    Ok(paths.filter(is_part).collect())
}

/// The steps of a part; none when the part has been removed.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn read_part(path: &Path) -> Result<Vec<Step>, JournalError> {
    match read_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|source| state_error("read", path, source)),
    }
}

/// Removes a part, all of whose steps are undone.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn forget_part(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(state_error("remove", path, err)),
        _ => Ok(()),
    }
}

/// The root of a task's state: [`TASKS_ROOT`], also for a new task. Earlier versions had the namespaces
/// directly below [`STATE_ROOT`]; a task of such a version is still found there.
#[must_use]
pub(crate) fn root_of(namespace: &str, id: &str) -> &'static Path {
    let [tasks, earlier] = [TASKS_ROOT, STATE_ROOT].map(Path::new);
    root_among(tasks, earlier, namespace, id)
}

/// As [`root_of`], with other roots than the host's.
pub(crate) fn root_among<'a>(
    tasks: &'a Path,
    earlier: &'a Path,
    namespace: &str,
    id: &str,
) -> &'a Path {
    // A directory of this name is a task's of the present layout.
    let is_there = |root| {
        let journal = directory(root, namespace, id).join(JOURNAL_FILE);
        journal.is_file()
    };
    if !is_there(tasks) && is_there(earlier) {
        earlier
    } else {
        tasks
    }
}

/// Removes a task's state, if any. To be called by the process that holds the task or has taken the task over.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn forget(root: &Path, namespace: &str, id: &str) -> Result<(), JournalError> {
    forget_part(&directory(root, namespace, id).join(JOURNAL_FILE))?;
    tidy(root, namespace, id);
    Ok(())
}

/// Removes the task's directory when the directory is empty, and the namespace's with its last task. Another task
/// that is about to use the directory makes the directory again.
pub(crate) fn tidy(root: &Path, namespace: &str, id: &str) {
    let directory = directory(root, namespace, id);
    let _ = fs::remove_dir(&directory);
    let _ = fs::remove_dir(root.join(namespace));
}

/// The state directory of one task.
fn directory(root: &Path, namespace: &str, id: &str) -> PathBuf {
    root.join(namespace).join(id)
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
    use tempfile::tempdir;

    const BUNDLE: &str = "/run/b/web";

    fn create(root: &Path, id: &str) -> Result<Journal, JournalError> {
        Journal::create(root, "default", id, Path::new(BUNDLE), None)
    }

    fn bundle() -> Step {
        Step::Bundle {
            path: BUNDLE.into(),
            pod: None,
        }
    }

    fn vmm() -> Step {
        Step::Vmm {
            pid: 42,
            start_time: 7,
        }
    }

    #[test]
    fn steps_come_back_in_order() {
        let root = tempdir().unwrap();
        let journal = create(root.path(), "web").unwrap();
        let cgroup = Step::CgroupHeld {
            made: vec![DirectoryIdentity {
                path: "/sys/fs/cgroup/default/web".into(),
                inode: 9,
            }],
            joined: Vec::new(),
        };
        journal.record(&cgroup).unwrap();
        journal.record(&vmm()).unwrap();
        let steps = read(root.path(), "default", "web").unwrap().unwrap();
        assert_eq!(steps, [bundle(), cgroup, vmm()]);
        forget(root.path(), "default", "web").unwrap();
        assert_eq!(read(root.path(), "default", "web").unwrap(), None);
        assert!(!root.path().join("default").exists());
    }

    #[test]
    fn a_line_cut_off_by_a_crash_is_passed_over() {
        let root = tempdir().unwrap();
        let journal = create(root.path(), "web").unwrap();
        journal.record(&vmm()).unwrap();
        // The second one within a character.
        for cut_off in [
            &b"{\"exit\":{\"sta"[..],
            b"\n{\"bundle\":{\"path\":\"/b\xc3",
        ] {
            (&journal.file).write_all(cut_off).unwrap();
            assert_eq!(
                read(root.path(), "default", "web").unwrap().unwrap(),
                [bundle(), vmm()]
            );
        }
    }

    /// Journals outlive an update of this program.
    #[test]
    fn the_cgroup_of_an_earlier_version_is_read() {
        let root = tempdir().unwrap();
        let journal = create(root.path(), "web").unwrap();
        let line = b"{\"cgroup\":{\"path\":\"/sys/fs/cgroup/default/web\"}}\n";
        (&journal.file).write_all(line).unwrap();
        let path = "/sys/fs/cgroup/default/web".into();
        let steps = read(root.path(), "default", "web").unwrap().unwrap();
        assert_eq!(steps, [bundle(), Step::Cgroup { path }]);
    }

    /// A task may live for months, and compile for every exec of a new program.
    #[test]
    fn a_journal_does_not_grow_with_what_has_ended() {
        let root = tempdir().unwrap();
        let journal = create(root.path(), "web").unwrap();
        journal.record(&vmm()).unwrap();
        let state = || {
            fs::read_dir(root.path().join("default/web"))
                .unwrap()
                .count()
        };
        for compile in 0..1000 {
            let part = journal.part(&compile.to_string()).unwrap();
            let paths = vec!["/sys/fs/cgroup/wasmvm-compile/default/web/1".into()];
            part.record(&Step::CgroupWanted { paths }).unwrap();
            assert_eq!(state(), 2);
            forget_part(part.path()).unwrap();
            assert_eq!(state(), 1);
        }
        let exit = Step::Exit(ExitRecord::now(3));
        journal.record(&exit).unwrap();
        let steps = read(root.path(), "default", "web").unwrap().unwrap();
        assert_eq!(steps, [bundle(), vmm(), exit]);
    }

    #[test]
    fn a_second_task_of_the_id_is_refused() {
        let root = tempdir().unwrap();
        let _first = create(root.path(), "web").unwrap();
        let second = create(root.path(), "web").unwrap_err();
        assert_eq!(second.code(), ErrorCode::AlreadyExists);
    }

    #[test]
    fn the_last_task_of_a_namespace_does_not_take_the_next_one_with_it() {
        let root = tempdir().unwrap();
        let tasks = ["web", "db"].map(|id| {
            let root = root.path().to_owned();
            std::thread::spawn(move || {
                (0..200).try_for_each(|_| {
                    create(&root, id)?;
                    forget(&root, "default", id)
                })
            })
        });
        for task in tasks {
            task.join().unwrap().unwrap();
        }
    }

    /// An update of this program finds tasks of the version before.
    #[test]
    fn a_task_of_an_earlier_version_is_found_where_that_put_it() {
        let earlier = tempdir().unwrap();
        let tasks = earlier.path().join("tasks");
        let is_earlier =
            |namespace, id| root_among(&tasks, earlier.path(), namespace, id) == earlier.path();
        assert!(!is_earlier("default", "web"));
        let _old = create(earlier.path(), "web").unwrap();
        assert!(is_earlier("default", "web"));
        let bundle = Path::new(BUNDLE);
        let _new = Journal::create(&tasks, "default", "db", bundle, None).unwrap();
        assert!(!is_earlier("default", "db"));
        // Names that are folders of the host's own.
        let _task = Journal::create(&tasks, "artifacts", "key-12", bundle, None).unwrap();
        let _task = Journal::create(&tasks, "default", "journal", bundle, None).unwrap();
        assert!(!is_earlier("artifacts", "key-12"));
        assert!(!is_earlier("tasks", "default"));
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

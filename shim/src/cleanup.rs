//! Undoes what a task has done to the host, from its journal.
//!
//! One function serves all: a Create that failed, a Delete, and the `delete` action after the shim was
//! killed. So what the fault tests prove for one holds for the others. It blocks, uses no runtime, and
//! may be called again: each step can be undone twice.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup::{self, CgroupError};
use crate::error::ErrorCode;
use crate::hooks;
use crate::journal::{self, ExitRecord, JournalError, Step};
use crate::vm::process::Process;

/// A killed process that has not ended by then is stuck in the kernel.
pub const KILL_MAX: Duration = Duration::from_secs(3);
/// All steps together, hooks not counted. containerd gives `delete` 5 s.
const UNDO_MAX: Duration = Duration::from_secs(4);
/// `128 + SIGKILL`: how a task ends whose VM was killed.
pub const STATUS_KILLED: u32 = 137;

/// What there is to say of a task that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The VMM's pid, 0 when there never was one.
    pub pid: u32,
    /// How init ended; [`STATUS_KILLED`] now when it had not ended by itself.
    pub exit: ExitRecord,
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The journal itself.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A VMM that does not die.
    #[error("cannot end the VMM, pid {pid}")]
    Vmm {
        /// On the host.
        pid: u32,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// A cgroup that does not go.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl CleanupError {
    /// containerd's code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Internal
    }
}

/// Ends and removes everything the task of this id has left below `root` and on the host, and runs its
/// poststop hooks. That there is nothing is no error.
///
/// # Errors
/// The first [`CleanupError`]; what can be undone in spite of it is undone, and the journal is kept.
pub fn undo(root: &Path, namespace: &str, id: &str) -> Result<Outcome, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    let outcome = undo_steps(&steps)?;
    hooks::settle(root, namespace, id, &steps);
    journal::forget(root, namespace, id)?;
    Ok(outcome)
}

/// [`undo`] for the `delete` action. Another containerd's task of the same id, whose shim lives, is left
/// alone: ours was refused because of it, and has left nothing.
///
/// # Errors
/// As [`undo`]'s.
pub fn undo_of_bundle(
    root: &Path,
    namespace: &str,
    id: &str,
    bundle: &Path,
) -> Result<Outcome, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    let foreign = steps
        .iter()
        .any(|step| matches!(step, Step::Bundle { path } if path != bundle));
    if foreign && journal::is_held(root, namespace, id) {
        return undo_steps(&[]);
    }
    undo(root, namespace, id)
}

/// Does the same as [`undo`], but keeps the journal: a program that has ended needs nothing of the host any more,
/// and how it ended must be known until `Delete`, also to a `delete` after the shim's death.
///
/// # Errors
/// As [`undo`]'s.
pub fn release(root: &Path, namespace: &str, id: &str) -> Result<Outcome, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    let outcome = undo_steps(&steps)?;
    if !steps.is_empty() && !steps.contains(&Step::Released) {
        journal::append(root, namespace, id, &Step::Released)?;
    }
    Ok(outcome)
}

fn undo_steps(steps: &[Step]) -> Result<Outcome, CleanupError> {
    let deadline = Instant::now() + UNDO_MAX;
    // What is left when an earlier step took its time; a step that need not wait succeeds with nothing.
    let patience = || KILL_MAX.min(deadline.saturating_duration_since(Instant::now()));
    let mut released = false;
    let mut outcome = Outcome {
        pid: 0,
        exit: ExitRecord::now(STATUS_KILLED),
    };
    let mut first_error = None;
    for step in steps.iter().rev() {
        let undone = match step {
            Step::Exit(exit) => {
                outcome.exit = *exit;
                Ok(())
            }
            Step::Released => {
                released = true;
                Ok(())
            }
            Step::Vmm { pid, start_time } => {
                outcome.pid = *pid;
                end_process(*pid, *start_time, patience())
            }
            Step::Bundle { .. } | Step::Poststop { .. } | Step::PoststopHook { .. } => Ok(()),
            Step::Cgroup { .. } if released => Ok(()),
            Step::Cgroup { path } => cgroup::remove(path, patience()).map_err(CleanupError::from),
        };
        if let Err(err) = undone {
            first_error.get_or_insert(err);
        }
    }
    match first_error {
        Some(err) => Err(err),
        None => Ok(outcome),
    }
}

fn end_process(pid: u32, start_time: u64, patience: Duration) -> Result<(), CleanupError> {
    let failed = |source| CleanupError::Vmm { pid, source };
    let Some(process) = Process::find(pid, start_time).map_err(failed)? else {
        return Ok(());
    };
    process.kill();
    if process.wait_blocking(patience).map_err(failed)? {
        Ok(())
    } else {
        Err(failed(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use crate::vm::process::start_time;
    use std::process::Command;
    use tempfile::tempdir;

    #[test]
    fn nothing_there_is_nothing_to_do() {
        let root = tempdir().unwrap();
        let outcome = undo(root.path(), "default", "web").unwrap();
        assert_eq!((outcome.pid, outcome.exit.status), (0, STATUS_KILLED));
    }

    #[test]
    fn the_vmm_is_ended_and_the_recorded_exit_reported() {
        let root = tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        let start_time = start_time(child.id()).unwrap();
        journal
            .record(&Step::Vmm {
                pid: child.id(),
                start_time,
            })
            .unwrap();
        let exit = ExitRecord {
            status: 3,
            exited_at_ns: 5,
        };
        journal.record(&Step::Exit(exit)).unwrap();
        let expected = Outcome {
            pid: child.id(),
            exit,
        };
        let released = release(root.path(), "default", "web").unwrap();
        assert_eq!(released, expected);
        assert!(child.wait().is_err(), "ended and reaped");
        // The shim may be killed now: `delete` still tells how the program ended.
        let outcome = undo(root.path(), "default", "web").unwrap();
        assert_eq!(outcome, expected);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_living_task_of_another_containerd_is_left_alone() {
        let root = tempdir().unwrap();
        let (ours, theirs) = (Path::new("/run/a/web"), Path::new("/run/b/web"));
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        let path = theirs.to_owned();
        journal.record(&Step::Bundle { path }).unwrap();
        let there = || {
            journal::read(root.path(), "default", "web")
                .unwrap()
                .is_some()
        };
        let outcome = undo_of_bundle(root.path(), "default", "web", ours).unwrap();
        assert_eq!((outcome.pid, there()), (0, true));
        undo_of_bundle(root.path(), "default", "web", theirs).unwrap();
        assert!(!there());
        let dead = Journal::create(root.path(), "default", "web").unwrap();
        let path = theirs.to_owned();
        dead.record(&Step::Bundle { path }).unwrap();
        drop(dead);
        undo_of_bundle(root.path(), "default", "web", ours).unwrap();
        assert!(!there());
    }

    #[test]
    fn what_was_released_is_not_undone_again() {
        let root = tempdir().unwrap();
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        // No cgroup, so its removal would fail; another task's would succeed.
        let path = root.path().join("cgroup");
        journal.record(&Step::Cgroup { path }).unwrap();
        undo(root.path(), "default", "web").unwrap_err();
        journal::append(root.path(), "default", "web", &Step::Released).unwrap();
        undo(root.path(), "default", "web").unwrap();
        assert_eq!(journal::read(root.path(), "default", "web").unwrap(), None);
    }

    #[test]
    fn a_later_process_of_the_same_pid_is_left_alone() {
        let root = tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let journal = Journal::create(root.path(), "default", "web").unwrap();
        let start_time = start_time(child.id()).unwrap() + 1;
        journal
            .record(&Step::Vmm {
                pid: child.id(),
                start_time,
            })
            .unwrap();
        undo(root.path(), "default", "web").unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "still runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

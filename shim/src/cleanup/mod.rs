//! Undoes what a task has done to the host, from its journal.
//!
//! One function serves all: a Create that failed, a Delete, and the `delete` action after the shim was
//! killed. So what the fault tests prove for one holds for the others. It blocks, uses no runtime, and
//! may be called again: each step can be undone twice.

mod off_thread;

pub(crate) use self::off_thread::{Cleanup, undo_off_thread};

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup::{self, CgroupError};
use crate::error::{Coded, ErrorCode};
use crate::hooks;
use crate::host_process::HostProcess;
use crate::journal::{self, ExitRecord, Journal, JournalError, LeftOver, Step};

/// A killed process that has not ended by then is stuck in the kernel.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(3);
/// All steps together, hooks not counted. containerd gives `delete` 5 s.
const UNDO_MAX: Duration = Duration::from_secs(4);
/// `128 + SIGKILL`: how a task ends whose VM was killed.
pub(crate) const STATUS_KILLED: u32 = 137;

/// The pid and the exit of a task that is gone, for the reply to `delete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The VMM's pid, 0 when there never was one.
    pub pid: u32,
    /// How init ended; [`STATUS_KILLED`] now when it had not ended by itself.
    pub exit: ExitRecord,
}

impl Default for Outcome {
    /// The outcome of a task of which nothing is known.
    fn default() -> Self {
        Self {
            pid: 0,
            exit: ExitRecord::now(STATUS_KILLED),
        }
    }
}

/// Why something of a task is left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CleanupError {
    /// The task's journal cannot be read, locked or removed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The VMM has not ended within [`KILL_MAX`] of SIGKILL, or cannot be killed.
    #[error("cannot end the VMM, pid {pid}")]
    Vmm {
        /// Pid of the VMM on the host.
        pid: u32,
        /// Error of the system call, or a timeout.
        #[source]
        source: io::Error,
    },
    /// A cgroup of the task cannot be removed or reset.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Coded for CleanupError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Journal(err) => err.code(),
            Self::Vmm { .. } | Self::Cgroup(_) => ErrorCode::Internal,
        }
    }
}

/// Ends and removes everything the task of this id has left below `root` and on the host, and runs its
/// poststop hooks. Succeeds when nothing is left.
///
/// # Errors
/// The first [`CleanupError`]; what can be undone in spite of it is undone, and the journal is kept.
pub(crate) fn undo(root: &Path, namespace: &str, id: &str) -> Result<Outcome, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    let outcome = undo_all(root, namespace, id, &steps)?;
    hooks::run_poststop(root, namespace, id, &steps);
    journal::forget(root, namespace, id)?;
    if let Some(pod) = pod_of(&steps).filter(|pod| *pod != id) {
        journal::leave(root, namespace, pod, id);
    }
    Ok(outcome)
}

/// The pod that the task of these steps belongs to, or is the sandbox of.
fn pod_of(steps: &[Step]) -> Option<&str> {
    steps.iter().find_map(|step| match step {
        Step::Bundle { pod, .. } => pod.as_deref(),
        _ => None,
    })
}

/// [`undo`] for the `delete` action. Another containerd's task of the same id, whose shim lives, is left
/// alone: ours was refused because of it, and has left nothing. With a pod's sandbox all containers of the pod are
/// undone that no shim holds: for a container that came without `start` there is no `delete`.
///
/// # Errors
/// As [`undo`]'s.
pub(crate) fn undo_of_bundle(
    root: &Path,
    namespace: &str,
    id: &str,
    bundle: &Path,
) -> Result<Outcome, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    let foreign = steps
        .iter()
        .any(|step| matches!(step, Step::Bundle { path, .. } if path != bundle));
    match journal::take_over(root, namespace, id)? {
        LeftOver::Held if foreign => Ok(Outcome::default()),
        // Our own shim may still live, and be at it too.
        LeftOver::Held => undo(root, namespace, id),
        LeftOver::Taken(_) => {
            let (containers, own) = std::thread::scope(|scope| {
                let containers = scope.spawn(|| undo_containers(root, namespace, id));
                let own = undo(root, namespace, id);
                (containers.join(), own)
            });
            containers.unwrap_or(Ok(()))?;
            own
        }
        LeftOver::Gone => {
            undo_containers(root, namespace, id)?;
            journal::tidy(root, namespace, id);
            Ok(Outcome::default())
        }
    }
}

fn is_of_pod(root: &Path, namespace: &str, id: &str, pod: &str) -> Result<bool, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    Ok(pod_of(&steps) == Some(pod))
}

/// Undoes every container of a pod that no shim holds, all at once. A task that is no pod's sandbox has none.
fn undo_containers(root: &Path, namespace: &str, pod: &str) -> Result<(), CleanupError> {
    let containers = journal::containers_of(root, namespace, pod)?;
    let undo_one = |id: &str| {
        let left = journal::take_over(root, namespace, id)?;
        let is_ours = is_of_pod(root, namespace, id, pod)?;
        match left {
            LeftOver::Held if is_ours => {}
            LeftOver::Taken(_) if is_ours => drop(undo(root, namespace, id)?),
            // The shim died before the journal was made, or the id is another task's.
            LeftOver::Held | LeftOver::Taken(_) | LeftOver::Gone => {
                journal::leave(root, namespace, pod, id);
            }
        }
        Ok::<_, CleanupError>(())
    };
    let undone: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = containers
            .iter()
            .map(|id| scope.spawn(move || undo_one(id)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    // A thread that panicked has said so; its container's journal is still there.
    undone.into_iter().flatten().collect()
}

/// Starts the journal of a new task below `tasks`, once what a dead shim has left of one of the same id is
/// undone; that may lie below `earlier`.
///
/// # Errors
/// [`CleanupError`]; [`JournalError::Exists`] while a shim holds a task of this id.
pub(crate) fn begin(
    tasks: &Path,
    earlier: &Path,
    namespace: &str,
    id: &str,
    bundle: &Path,
    pod: Option<&str>,
) -> Result<Journal, CleanupError> {
    loop {
        let root = journal::root_among(tasks, earlier, namespace, id);
        if root == tasks {
            match Journal::create(tasks, namespace, id, bundle, pod) {
                Err(JournalError::Exists(_)) => {}
                other => return Ok(other?),
            }
        }
        match journal::take_over(root, namespace, id)? {
            LeftOver::Held => {
                return Err(JournalError::Exists(root.join(namespace).join(id)).into());
            }
            // Taken or undone by another since: there is somebody who got further at each turn.
            LeftOver::Gone => {}
            LeftOver::Taken(_) => {
                tracing::warn!(task_id = id, "undoing what an earlier task has left");
                undo(root, namespace, id)?;
            }
        }
    }
}

/// Does the same as [`undo`], but keeps the journal: a program that has ended needs nothing of the host any more,
/// and how it ended must be known until `Delete`, also to a `delete` after the shim's death.
///
/// # Errors
/// As [`undo`]'s.
pub(crate) fn release(root: &Path, namespace: &str, id: &str) -> Result<Outcome, CleanupError> {
    let steps = journal::read(root, namespace, id)?.unwrap_or_default();
    let outcome = undo_all(root, namespace, id, &steps)?;
    if !steps.is_empty() && !steps.contains(&Step::Released) {
        journal::append(root, namespace, id, &Step::Released)?;
    }
    Ok(outcome)
}

/// Undoes a part of a task's life that has ended, or is to end, and forgets it. May be called again.
///
/// # Errors
/// The first [`CleanupError`]; the part is kept then.
pub(crate) fn undo_part(part: &Path) -> Result<(), CleanupError> {
    undo_part_by(part, Instant::now() + UNDO_MAX)
}

fn undo_part_by(part: &Path, deadline: Instant) -> Result<(), CleanupError> {
    undo_steps(&journal::read_part(part)?, deadline)?;
    Ok(journal::forget_part(part)?)
}

/// The task and what is left of its parts.
fn undo_all(
    root: &Path,
    namespace: &str,
    id: &str,
    steps: &[Step],
) -> Result<Outcome, CleanupError> {
    let deadline = Instant::now() + UNDO_MAX;
    let parts = journal::parts(root, namespace, id)?;
    let parts: Vec<_> = parts
        .iter()
        .map(|part| undo_part_by(part, deadline))
        .collect();
    let outcome = undo_steps(steps, deadline)?;
    parts.into_iter().collect::<Result<(), _>>()?;
    Ok(outcome)
}

fn undo_steps(steps: &[Step], deadline: Instant) -> Result<Outcome, CleanupError> {
    let limit = || KILL_MAX.min(deadline.saturating_duration_since(Instant::now()));
    let released = steps.contains(&Step::Released);
    let held = steps
        .iter()
        .any(|step| matches!(step, Step::CgroupHeld { .. }));
    let mut outcome = Outcome::default();
    let mut results = Vec::new();
    // Processes first: limits that come back are not to squeeze one that ends anyway.
    for step in steps.iter().rev() {
        match step {
            Step::Exit(exit) => outcome.exit = *exit,
            Step::Vmm { pid, start_time } | Step::Holder { pid, start_time } => {
                outcome.pid = *pid;
                results.push(end_process(*pid, *start_time, limit()));
            }
            _ => {}
        }
    }
    let rest = if released { &[] } else { steps };
    for step in rest.iter().rev() {
        match step {
            Step::CgroupLimit {
                directory,
                file,
                value,
            } => results.push(cgroup::restore(directory, file, value).map_err(Into::into)),
            Step::CgroupHeld { made, .. } => {
                let removed = made.iter().map(|made| cgroup::remove(made, limit()));
                results.extend(removed.map(|result| result.map_err(Into::into)));
            }
            Step::CgroupWanted { paths } => {
                let paths = paths.iter().rev();
                paths.for_each(|path| cgroup::remove_wanted(path, held));
            }
            Step::Cgroup { path } => {
                results.push(cgroup::remove_by_path(path, limit()).map_err(Into::into));
            }
            Step::Bundle { .. }
            | Step::Vmm { .. }
            | Step::Holder { .. }
            | Step::Poststop { .. }
            | Step::PoststopHook { .. }
            | Step::Exit(_)
            | Step::Released => {}
        }
    }
    let undone: Result<(), CleanupError> = results.into_iter().collect();
    undone.map(|()| outcome)
}

fn end_process(pid: u32, start_time: u64, limit: Duration) -> Result<(), CleanupError> {
    let failed = |source| CleanupError::Vmm { pid, source };
    let Some(process) = HostProcess::find(pid, start_time).map_err(failed)? else {
        return Ok(());
    };
    process.kill();
    if process.wait_blocking(limit).map_err(failed)? {
        Ok(())
    } else {
        Err(failed(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;
    use crate::host_process::start_time;
    use std::process::Command;
    use tempfile::tempdir;

    /// The journal of a task whose shim lives as long as it is held.
    fn create(root: &Path) -> Journal {
        Journal::create(root, "default", "web", Path::new("/run/b/web"), None).unwrap()
    }

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
        let journal = create(root.path());
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
        let journal = create(root.path());
        let there = || {
            journal::read(root.path(), "default", "web")
                .unwrap()
                .is_some()
        };
        let outcome = undo_of_bundle(root.path(), "default", "web", ours).unwrap();
        assert_eq!((outcome.pid, there()), (0, true));
        undo_of_bundle(root.path(), "default", "web", theirs).unwrap();
        assert!(!there());
        drop(journal);
        drop(create(root.path()));
        undo_of_bundle(root.path(), "default", "web", ours).unwrap();
        assert!(!there());
    }

    /// The journals of a pod and of two containers of it, held by one shim.
    fn create_pod(root: &Path) -> [Journal; 3] {
        ["pod", "a", "b"].map(|id| {
            let bundle = Path::new("/run/b").join(id);
            Journal::create(root, "default", id, &bundle, Some("pod")).unwrap()
        })
    }

    /// Ends the shim that holds the pod.
    fn die(root: &Path, journals: [Journal; 3]) {
        drop(journals);
        // A process that another test is just spawning holds a copy of a lock until its exec.
        let start = Instant::now();
        while ["pod", "a", "b"]
            .iter()
            .any(|id| journal::is_held(root, "default", id))
        {
            assert!(start.elapsed() < Duration::from_secs(10), "still held");
            std::thread::yield_now();
        }
    }

    fn delete(root: &Path, id: &str) -> Outcome {
        undo_of_bundle(root, "default", id, &Path::new("/run/b").join(id)).unwrap()
    }

    fn is_empty(root: &Path) -> bool {
        std::fs::read_dir(root).unwrap().count() == 0
    }

    #[test]
    fn the_delete_of_a_dead_pod_undoes_its_containers() {
        let root = tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let journals = create_pod(root.path());
        let start_time = start_time(child.id()).unwrap();
        let pid = child.id();
        journals[1].record(&Step::Vmm { pid, start_time }).unwrap();
        die(root.path(), journals);
        delete(root.path(), "pod");
        assert!(child.wait().is_err(), "ended and reaped");
        assert!(is_empty(root.path()));
        delete(root.path(), "pod");
        delete(root.path(), "a");
        assert!(is_empty(root.path()));
    }

    #[test]
    fn the_delete_of_a_living_pods_sandbox_leaves_its_containers_alone() {
        let root = tempdir().unwrap();
        let [pod, a, b] = create_pod(root.path());
        delete(root.path(), "pod");
        // The sandbox's journal is gone; those of its containers are held.
        delete(root.path(), "pod");
        for id in ["a", "b"] {
            let steps = journal::read(root.path(), "default", id).unwrap();
            assert!(steps.is_some_and(|steps| !steps.is_empty()), "{id}");
        }
        die(root.path(), [pod, a, b]);
        delete(root.path(), "a");
        delete(root.path(), "pod");
        assert!(is_empty(root.path()));
    }

    #[test]
    fn all_deletes_of_a_pod_may_run_at_once() {
        let root = tempdir().unwrap();
        for _ in 0..50 {
            die(root.path(), create_pod(root.path()));
            std::thread::scope(|scope| {
                for id in ["a", "pod", "b", "pod"] {
                    let root = root.path();
                    scope.spawn(move || delete(root, id));
                }
            });
            assert!(is_empty(root.path()));
        }
    }

    /// The shim died between the container's name and its journal, or the id is another task's by now.
    #[test]
    fn a_container_that_is_none_is_forgotten_and_no_other_task_touched() {
        let root = tempdir().unwrap();
        die(root.path(), create_pod(root.path()));
        for id in ["a", "b"] {
            journal::forget(root.path(), "default", id).unwrap();
        }
        let alone = Journal::create(root.path(), "default", "b", Path::new("/run/b/b"), None);
        delete(root.path(), "pod");
        assert!(
            journal::read(root.path(), "default", "b")
                .unwrap()
                .is_some()
        );
        drop(alone.unwrap());
        delete(root.path(), "b");
        assert!(is_empty(root.path()));
    }

    /// Each of them sees what a dead shim has left, and one of them gets the id.
    #[test]
    fn of_many_that_begin_at_once_one_has_the_task() {
        let root = tempdir().unwrap();
        let (tasks, earlier) = (root.path().join("tasks"), root.path());
        for left_in in [&tasks, earlier].repeat(20) {
            drop(create(left_in));
            // A process that another test is just spawning holds a copy of its lock until its exec.
            let start = Instant::now();
            while journal::is_held(left_in, "default", "web") {
                assert!(start.elapsed() < Duration::from_secs(10), "still held");
                std::thread::yield_now();
            }
            let begun: Vec<_> = std::thread::scope(|scope| {
                let shims: Vec<_> = (0..4)
                    .map(|shim| {
                        let (tasks, bundle) = (&tasks, format!("/run/{shim}/web"));
                        scope.spawn(move || {
                            begin(tasks, earlier, "default", "web", Path::new(&bundle), None)
                        })
                    })
                    .collect();
                shims.into_iter().map(|shim| shim.join().unwrap()).collect()
            });
            let (had, refused): (Vec<_>, Vec<_>) = begun.into_iter().partition(Result::is_ok);
            assert_eq!((had.len(), refused.len()), (1, 3));
            for refused in refused {
                let refused = refused.unwrap_err();
                assert_eq!(refused.code(), ErrorCode::AlreadyExists, "{refused:?}");
            }
            assert!(journal::is_held(&tasks, "default", "web"), "the winner's");
            undo(&tasks, "default", "web").unwrap();
            drop(had);
        }
    }

    #[test]
    fn what_was_released_is_not_undone_again() {
        let root = tempdir().unwrap();
        let journal = create(root.path());
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
        let journal = create(root.path());
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

    #[test]
    fn every_error_has_its_code() {
        let vmm = CleanupError::Vmm {
            pid: 1,
            source: io::ErrorKind::TimedOut.into(),
        };
        let cgroup = CgroupError::InUse { path: "/c".into() };
        let exists = JournalError::Exists("/t".into());
        expect_codes([
            (vmm, ErrorCode::Internal),
            (cgroup.into(), ErrorCode::Internal),
            (exists.into(), ErrorCode::AlreadyExists),
        ]);
    }
}

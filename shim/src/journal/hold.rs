//! The hold on a task: a lock on the task's journal, as long as the task's shim lives, and while another process undoes
//! the task.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{JOURNAL_FILE, JournalError, Step, directory, read, state_error};

/// Most tries to take a lock that is held only by those who look whether the task is held.
const LOCK_TRIES_MAX: usize = 64;

/// Whether a living shim holds the task of this id. A shared lock is tried, so that two callers do not
/// take each other for the shim.
pub(crate) fn is_held(root: &Path, namespace: &str, id: &str) -> bool {
    let file = File::open(directory(root, namespace, id).join(JOURNAL_FILE));
    // A journal that cannot be opened is held by nobody: a journal has its lock before its name.
    file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Whether a living shim holds a pod's sandbox of this id.
pub(crate) fn is_pod(root: &Path, namespace: &str, id: &str) -> bool {
    let steps = read(root, namespace, id).ok().flatten().unwrap_or_default();
    let is_sandbox = |step: &Step| matches!(step, Step::Bundle { pod: Some(pod), .. } if pod == id);
    steps.first().is_some_and(is_sandbox) && is_held(root, namespace, id)
}

/// The state of a task that a dead shim may have left.
#[derive(Debug)]
pub(crate) enum LeftOver {
    /// The task has no journal.
    Gone,
    /// A shim holds the task, or another process undoes the task.
    Held,
    /// The journal is locked for as long as the value lives: nobody else undoes the task meanwhile, and so nobody
    /// undoes by its name a task that was started since.
    Taken(#[expect(dead_code, reason = "held for its lock")] File),
}

/// Takes over what is left of a task, unless a process holds the task.
///
/// # Errors
/// [`JournalError::State`] when the journal cannot be opened: whose the task is, is not known then.
pub(crate) fn take_over(root: &Path, namespace: &str, id: &str) -> Result<LeftOver, JournalError> {
    let path = directory(root, namespace, id).join(JOURNAL_FILE);
    for _ in 0..LOCK_TRIES_MAX {
        let journal = match File::open(&path) {
            Ok(journal) => journal,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(LeftOver::Gone),
            Err(source) => return Err(state_error("read", &path, source)),
        };
        if flock(&journal, FlockOperation::NonBlockingLockExclusive).is_ok() {
            if is_at(&journal, &path) {
                return Ok(LeftOver::Taken(journal));
            }
        } else if flock(&journal, FlockOperation::NonBlockingLockShared).is_err() {
            return Ok(LeftOver::Held);
        }
        std::thread::yield_now();
    }
    Ok(LeftOver::Held)
}

/// Whether the path still leads to the file.
fn is_at(file: &File, path: &Path) -> bool {
    let of = |metadata: io::Result<fs::Metadata>| metadata.map(|found| (found.dev(), found.ino()));
    match (of(file.metadata()), of(fs::metadata(path))) {
        (Ok(file), Ok(there)) => file == there,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tempfile::tempdir;

    use super::*;
    use crate::error::{Coded as _, ErrorCode};
    use crate::journal::{Journal, forget};

    fn create(root: &Path, id: &str) -> Result<Journal, JournalError> {
        Journal::create(root, "default", id, Path::new("/run/b/web"), None)
    }

    #[test]
    fn a_journal_is_held_as_long_as_its_shim_lives() {
        let root = tempdir().unwrap();
        assert!(!is_held(root.path(), "default", "web"));
        let journal = create(root.path(), "web").unwrap();
        assert!(is_held(root.path(), "default", "web"));
        drop(journal);
        // A process that another test is just spawning holds a copy until its exec.
        let start = Instant::now();
        while is_held(root.path(), "default", "web") {
            assert!(start.elapsed() < Duration::from_secs(10), "still held");
            std::thread::yield_now();
        }
    }

    /// Two containerds may each start a task of the same id.
    #[test]
    fn no_journal_is_seen_before_it_is_held() {
        let root = tempdir().unwrap();
        let path = root.path().join("default/web/journal");
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..300 {
                    let journal = create(root.path(), "web").unwrap();
                    forget(root.path(), "default", "web").unwrap();
                    drop(journal);
                }
                ended.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(file) = File::open(&path) else {
                    continue;
                };
                let seems_free = flock(&file, FlockOperation::NonBlockingLockShared).is_ok();
                assert!(
                    !seems_free || !is_at(&file, &path),
                    "it is about to be held"
                );
                assert!(file.metadata().unwrap().len() > 0, "it names its bundle");
            }
        });
    }

    #[test]
    fn what_is_left_is_taken_over_by_one() {
        let root = tempdir().unwrap();
        let take = || take_over(root.path(), "default", "web").unwrap();
        assert!(matches!(take(), LeftOver::Gone));
        let journal = create(root.path(), "web").unwrap();
        assert!(matches!(take(), LeftOver::Held), "its shim lives");
        drop(journal);
        let start = Instant::now();
        let first = loop {
            // A process that another test is just spawning holds a copy until its exec.
            let first = take();
            if matches!(first, LeftOver::Taken(_)) {
                break first;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "still held");
            std::thread::yield_now();
        };
        assert!(matches!(take(), LeftOver::Held), "it is being undone");
        forget(root.path(), "default", "web").unwrap();
        let second = create(root.path(), "web").unwrap();
        drop(first);
        assert!(matches!(take(), LeftOver::Held), "a new shim's");
        drop(second);
    }

    /// A shim that begins with the id would wait for ever for it to go, and `delete` would say that it went.
    #[test]
    fn what_cannot_be_opened_is_not_taken_for_gone() {
        let root = tempdir().unwrap();
        let path = root.path().join("default/web/journal");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let refused = take_over(root.path(), "default", "web").unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Internal);
    }

    #[test]
    fn a_pod_is_what_its_sandbox_holds() {
        let root = tempdir().unwrap();
        let is_pod = |id| is_pod(root.path(), "default", id);
        let create = |id, pod| Journal::create(root.path(), "default", id, Path::new("/b"), pod);
        let _alone = create("alone", None).unwrap();
        let _pod = create("pod", Some("pod")).unwrap();
        let _container = create("c", Some("pod")).unwrap();
        assert!(is_pod("pod"));
        assert!(!is_pod("alone") && !is_pod("c") && !is_pod("gone"));
    }
}

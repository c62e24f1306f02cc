//! The tasks that live on this host, known by their journals: a shim that lives holds its journal's lock.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Most tasks that a sentence names.
const NAMED_MAX: usize = 5;

/// Why the handler is not taken away.
#[derive(Debug, thiserror::Error)]
pub(super) enum TasksError {
    /// Pods of the handler could not be stopped or removed by a containerd that does not know the handler.
    #[error(
        "{count} of wasmvm's tasks run here, in containerd's namespace and by their ids: {names}; delete their pods or containers first"
    )]
    Live { count: usize, names: String },
    /// A folder of the state cannot be listed.
    #[error("cannot list {}; `wasmvm containerd` is for root", .0.display())]
    List(PathBuf, #[source] io::Error),
}

/// Succeeds when no task lives.
///
/// # Errors
/// [`TasksError`], with the tasks that live.
pub(super) fn refuse_living(tasks: &Path) -> Result<(), TasksError> {
    let mut living = Vec::new();
    for namespace in list(tasks)? {
        for task in list(&namespace)? {
            if is_held(&task.join("journal")) {
                living.push(
                    task.strip_prefix(tasks)
                        .unwrap_or(&task)
                        .display()
                        .to_string(),
                );
            }
        }
    }
    if living.is_empty() {
        return Ok(());
    }
    living.sort();
    let count = living.len();
    living.truncate(NAMED_MAX);
    let more = if count > NAMED_MAX { " …" } else { "" };
    Err(TasksError::Live {
        count,
        names: living.join(" ") + more,
    })
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, TasksError> {
    let entries = match fs::read_dir(folder) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        }),
    };
    entries.map_err(|error| TasksError::List(folder.to_owned(), error))
}

/// Whether a shim holds the lock. A shared lock is tried, which keeps no other onlooker out.
fn is_held(journal: &Path) -> bool {
    let file = File::open(journal);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_lives_while_its_journal_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = dir.path();
        assert!(refuse_living(&tasks.join("none")).is_ok());
        for id in ["k8s.io/a", "k8s.io/b", "default/c"] {
            fs::create_dir_all(tasks.join(id)).unwrap();
            fs::write(tasks.join(id).join("journal"), "").unwrap();
        }
        fs::create_dir_all(tasks.join("k8s.io/without")).unwrap();
        assert!(refuse_living(tasks).is_ok());
        let hold = |id: &str| {
            let file = File::open(tasks.join(id).join("journal")).unwrap();
            file.lock().unwrap();
            file
        };
        let held = (hold("k8s.io/b"), hold("default/c"));
        let refused = refuse_living(tasks).unwrap_err().to_string();
        assert!(refused.starts_with("2 of wasmvm's tasks"), "{refused}");
        assert!(refused.contains("default/c k8s.io/b;"), "{refused}");
        drop(held);
        assert!(refuse_living(tasks).is_ok());
    }
}

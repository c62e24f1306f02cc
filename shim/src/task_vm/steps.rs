//! The steps of a task's VM that block, run off the runtime's thread.

use std::path::Path;

use super::error::TaskVmError;
use crate::cleanup::{CleanupError, Outcome};
use crate::error::Refusal;
use crate::hooks;
use crate::journal;

/// A way to clean up: [`crate::cleanup::undo`] or [`crate::cleanup::release`].
pub(super) type Cleanup = fn(&Path, &str, &str) -> Result<Outcome, CleanupError>;

/// Undoes the journal off the runtime's thread: a cgroup takes a moment to empty.
///
/// # Errors
/// [`Refusal`].
pub(super) async fn undo(cleanup: Cleanup, namespace: String, id: String) -> Result<(), Refusal> {
    off_thread(move || {
        hooks::wait_for_cancelled(&id);
        let root = journal::root_of(&namespace, &id);
        cleanup(root, &namespace, &id).map(drop)
    })
    .await
}

/// Runs a step of a task's VM by [`crate::off_thread`].
///
/// # Errors
/// The step's, and [`Refusal`] when the step panicked.
pub(super) async fn off_thread<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: Send + 'static,
    Refusal: From<E>,
{
    match crate::off_thread::off_thread(work).await {
        Ok(done) => Ok(done?),
        Err(source) => Err(TaskVmError::Step {
            action: "finish a step on a thread of its own",
            source,
        }
        .into()),
    }
}

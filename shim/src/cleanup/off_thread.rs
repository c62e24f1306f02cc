//! Undoing a journal off the runtime's thread: a cgroup takes a moment to empty.

use std::path::Path;

use super::{CleanupError, Outcome};
use crate::error::Refusal;
use crate::hooks;
use crate::journal;
use crate::off_thread::step_off_thread;

/// A way to clean up: [`super::undo`] or [`super::release`].
pub(crate) type Cleanup = fn(&Path, &str, &str) -> Result<Outcome, CleanupError>;

/// Undoes the journal of the task on a thread of its own, once the hooks that were given up have ended.
///
/// # Errors
/// [`Refusal`].
pub(crate) async fn undo_off_thread(
    cleanup: Cleanup,
    namespace: &str,
    id: &str,
) -> Result<(), Refusal> {
    let (namespace, id) = (namespace.to_owned(), id.to_owned());
    step_off_thread(move || {
        hooks::wait_for_cancelled(&id);
        let root = journal::root_of(&namespace, &id);
        cleanup(root, &namespace, &id).map(drop)
    })
    .await
}

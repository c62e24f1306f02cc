//! Work that waits for a disk, a lock or a process, away from the runtime's only thread.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

/// Runs `work` on a thread of its own; containerd's other requests go on meanwhile.
///
/// # Errors
/// When `work` panics, or the runtime ends first.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// The result of `work`, which runs on a thread of its own; `None` when that takes longer than `limit`. The thread
/// is then left to itself.
pub(crate) async fn off_thread_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    timeout(limit, off_thread(work)).await.ok()?.ok()
}

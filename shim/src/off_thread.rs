//! Work that waits for a disk, a lock or a process, away from the runtime's only thread.

use std::io;

/// Runs `work` on a thread of its own; containerd's other requests go on meanwhile.
///
/// # Errors
/// When `work` panics, or the runtime ends first.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

//! Work that waits for a disk, a lock or a process, away from the runtime's only thread.

use std::io;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{ErrorCode, Refusal};
use crate::log::in_span;

/// Most threads that may be left to themselves.
const LEFT_THREADS_MAX: usize = 8;

/// Runs `work` on a thread of its own; containerd's other requests go on meanwhile.
///
/// # Errors
/// When `work` panics, or the runtime ends first.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    Ok(tokio::task::spawn_blocking(in_span(work)).await?)
}

/// Runs a step of a request by [`off_thread`].
///
/// # Errors
/// The step's, and [`Refusal`] when the step panicked.
pub(crate) async fn step_off_thread<T, E>(
    step: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: Send + 'static,
    Refusal: From<E>,
{
    match off_thread(step).await {
        Ok(done) => Ok(done?),
        Err(error) => {
            let sentence = format!("cannot finish a step on a thread of its own: {error}");
            Err(Refusal::say(ErrorCode::Internal, sentence))
        }
    }
}

/// The result of `work`, which runs on a thread of its own; `None` when that takes longer than `limit`. The thread
/// is then left to itself; there are at most [`LEFT_THREADS_MAX`] such threads.
pub(crate) async fn off_thread_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    static THREADS: Semaphore = Semaphore::const_new(LEFT_THREADS_MAX);
    let work = async {
        let thread = THREADS.acquire().await.ok()?;
        let work = move || {
            let done = work();
            drop(thread);
            done
        };
        off_thread(work).await.ok()
    };
    timeout(limit, work).await.ok()?
}

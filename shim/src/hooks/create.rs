//! The hooks of `Create` and `Start`: beside the runtime, and ended with the request that wanted them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::run::{Call, Running};
use super::{Hook, HookError, HookState, Stage};

/// Runs hooks one after another, until the first that fails. When the future is dropped, the hook that
/// runs is killed and has ended before the drop returns: nothing that undoes the task comes in between.
///
/// # Errors
/// The first [`HookError`].
pub async fn run_in_order(
    lists: Vec<(Stage, Vec<Hook>)>,
    state: HookState,
) -> Result<(), HookError> {
    if lists.iter().all(|(_, hooks)| hooks.is_empty()) {
        return Ok(());
    }
    let (done, waiting) = oneshot::channel();
    let (cancelled, cancel) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| HookError::Wait(errno.into()))?;
    let thread = std::thread::Builder::new()
        .name("hooks".into())
        .spawn(move || {
            let result = run_lists(&lists, &state, &cancelled);
            // Nobody waits any more: then it was cancelled.
            let _ = done.send(result);
        })
        .map_err(HookError::Wait)?;
    let _guard = Guard {
        cancel: Some(cancel),
        thread: Some(thread),
    };
    waiting.await.unwrap_or(Err(HookError::Cancelled))
}

fn run_lists(
    lists: &[(Stage, Vec<Hook>)],
    state: &HookState,
    cancelled: &OwnedFd,
) -> Result<(), HookError> {
    for (stage, hooks) in lists {
        for (index, hook) in hooks.iter().enumerate() {
            let call = Call {
                stage: *stage,
                index,
                hook,
            };
            let running = Running::spawn(call, state)?;
            tracing::debug!(task_id = state.id, hook = stage.field(), index, "hook runs");
            running.finish(Some(cancelled.as_fd()))?;
        }
    }
    Ok(())
}

/// Its drop hangs up the pipe, on which the thread kills the hook and ends.
struct Guard {
    cancel: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.cancel.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been logged and is this request's failure already.
            let _ = thread.join();
        }
    }
}

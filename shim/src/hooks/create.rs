//! The hooks of `Create` and `Start`: run beside the runtime, and ended with the request that wanted them.
//!
//! A request that is dropped must not wait for its hook's end on the runtime's only thread. So the hook's
//! thread is left here, and the undoing of the task waits for the thread before all else
//! ([`wait_for_cancelled`]).

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::HookError;
use super::run::{Call, Running};
use crate::bundle::{Hook, HookState, Stage};
use crate::log::in_span;

/// Threads whose requests were dropped, by the task's id: each thread kills its hook and ends within
/// `KILL_MAX` of [`super::run`].
static CANCELLED: Mutex<Vec<(String, JoinHandle<()>)>> = Mutex::new(Vec::new());

fn cancelled() -> MutexGuard<'static, Vec<(String, JoinHandle<()>)>> {
    // A list is whole after every push and removal.
    CANCELLED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks until no hook runs for a dropped request of the task; only then may the task be undone.
pub(crate) fn wait_for_cancelled(id: &str) {
    loop {
        let thread = {
            let mut threads = cancelled();
            let found = threads.iter().position(|(of, _)| of == id);
            found.map(|index| threads.swap_remove(index).1)
        };
        match thread {
            // A panic of the thread has been logged, and was the request's failure already.
            Some(thread) => drop(thread.join()),
            None => return,
        }
    }
}

/// Runs hooks one after another, until the first that fails. When the future is dropped, the hook that
/// runs is killed; [`wait_for_cancelled`] waits for its end.
///
/// # Errors
/// The first [`HookError`].
pub(crate) async fn run_in_order(
    lists: Vec<(Stage, Vec<Hook>)>,
    state: HookState,
) -> Result<(), HookError> {
    if lists.iter().all(|(_, hooks)| hooks.is_empty()) {
        return Ok(());
    }
    let id = state.id.clone();
    let (done, waiting) = oneshot::channel();
    let (cancelled, cancel) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| HookError::Wait(errno.into()))?;
    let thread = std::thread::Builder::new()
        .name("hooks".into())
        .spawn(in_span(move || {
            let result = run_lists(&lists, &state, &cancelled);
            // The send fails when the request was dropped.
            let _ = done.send(result);
        }))
        .map_err(HookError::Wait)?;
    let mut guard = Guard {
        id,
        _cancel: cancel,
        thread: Some(thread),
    };
    let result = waiting.await.unwrap_or(Err(HookError::Cancelled));
    // The thread has sent its result and ends by itself.
    guard.thread = None;
    result
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

/// The request's hold on the hooks' thread: dropping the guard hangs up the pipe, on which the thread kills
/// the hook and ends.
struct Guard {
    id: String,
    _cancel: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            cancelled().push((std::mem::take(&mut self.id), thread));
        }
    }
}

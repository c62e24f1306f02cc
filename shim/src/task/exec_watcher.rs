//! The watcher of an exec, from its start until the exec is deleted.

use std::sync::Arc;
use std::time::Duration;

use super::fatal::is_kill;
use super::pause::Flow;
use super::process::exit_event;
use super::{Exec, Exit, LoadedVm, Move, State, Task};
use crate::events::Event;
use crate::log::spawn_in_span;
use crate::stdio::Pumps;

/// How long an exec may outlive init. After that time the exec counts as killed: the VM's end will kill it.
const EXEC_ENDS_MAX: Duration = Duration::from_secs(1);
/// Watches an exec from its start until the exec is deleted. Runs once per exec that has started.
pub(super) async fn watch(task: Arc<Task>, exec: Arc<Exec>, mut pumps: Pumps) {
    let Ok(vm) = task.vm() else { return };
    let reported = tokio::select! {
        biased;
        status = exec_status(&exec, vm) => {
            if is_kill(status) {
                task.notice_oom(vm).await;
            }
            status
        }
        () = exec.abandoned() => None,
        () = outlives_init(&task) => None,
    };
    if reported.is_none() {
        task.keep_lingering(&exec);
    }
    let exit = Exit::now(exec.process.fatal.status(reported));
    let told = exec.process.transition_and_publish(Move::Exit(exit), |_| {
        let event = exit_event(&task, exec.id(), exec.pid(), exit);
        task.events.publish(Event::Exit(event));
    });
    debug_assert!(told.is_ok(), "an exec that runs ends once");
    if reported.is_none() {
        spawn_in_span(linger(task.clone(), exec.clone()));
    }
    exec.process.finish_output(&mut pumps).await;
    if reported.is_some() {
        forget(&task, &exec, vm).await;
        exec.free_slot();
    }
    exec.process.set_drained();
    // The FIFOs stay open until then, as init's do.
    exec.process
        .reaches(|state| matches!(state, State::Deleted(_)))
        .await;
    drop(pumps);
}

/// Waits until the guest reports the end of an exec that has ended for containerd, or the VM ends; then
/// frees the exec's slot and id. See [`Task::keep_lingering`].
pub(super) async fn linger(task: Arc<Task>, exec: Arc<Exec>) {
    let Ok(vm) = task.vm() else { return };
    let over = async {
        match vm.programs().wait(exec.id()).await {
            Ok(_) => {}
            Err(error) if error.says_ended() => {}
            // The error does not say whether the exec has ended; the VM's end will.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = over => forget(&task, &exec, vm).await,
        _ = vm.workload.vm_ended() => {}
    }
    exec.free_slot();
    task.lingering().remove(exec.id());
}

/// Waits for an exec's exit and returns the status that the guest reports; `None` when there will be no
/// report.
async fn exec_status(exec: &Exec, vm: &LoadedVm) -> Option<u32> {
    let ended = tokio::select! {
        biased;
        status = vm.programs().wait(exec.id()) => status,
        _ = vm.workload.vm_ended() => return None,
    };
    match ended {
        Ok(status) => Some(status),
        Err(error) => {
            // As a rule, because the VM has ended.
            tracing::debug!(exec = exec.process.name(), %error, "the guest has lost it");
            None
        }
    }
}

/// Returns when an exec has had its time to end after init.
async fn outlives_init(task: &Task) {
    task.ends().await;
    tokio::time::sleep(EXEC_ENDS_MAX).await;
}

/// Has the guest forget an exec that has exited, so that its id can be used again. A paused VM delays the
/// request, but not `Delete`.
pub(super) async fn forget(task: &Arc<Task>, exec: &Arc<Exec>, vm: &LoadedVm) {
    let workload = vm.workload.clone();
    let (task, exec) = (task.clone(), exec.clone());
    let stopped = task.flow.now() != Flow::Running;
    let forgotten = async move {
        if let Err(error) = workload.programs().delete(exec.id()).await {
            let name = exec.process.name();
            tracing::debug!(name, %error, "the guest may remember it");
        }
    };
    if stopped {
        spawn_in_span(forgotten);
        return;
    }
    tokio::pin!(forgotten);
    tokio::select! {
        () = &mut forgotten => {}
        () = task.flow.stopping() => {}
    }
}

impl Task {
    /// Keeps an exec that has ended for containerd, but may still run in the guest: until [`linger`] is
    /// done, the exec keeps its slot, its id and its place among the execs that a task may have.
    pub(super) fn keep_lingering(&self, exec: &Arc<Exec>) {
        let id = exec.id().to_owned();
        self.lingering().insert(id, exec.clone());
    }
}

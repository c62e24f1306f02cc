//! The watcher of one task: from its creation until nothing of it is left.
//!
//! ```text
//! program or VM ends ──► exit kept in the journal ──► TaskExit ──► output drained, FIFOs closed
//!                                                                          └──► VM ended, removed
//!                                       Delete ──► journal removed
//! ```
//!
//! `TaskExit` does not wait for the output, and the output does not wait for `Delete`: `ctr` asks for
//! `Delete` only after it has read the FIFOs to their end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use wasmvm_protocol::agent::containerd::events::task::TaskExit;

use super::{Exit, Move, State, Task, Vm};
use crate::cleanup::STATUS_KILLED;
use crate::events::Event;
use crate::stdio::Pumps;

/// How long the output of an ended program may take to reach its readers, as in runc's shim.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Runs once per task, in a task of the runtime.
pub async fn live(task: Arc<Task>, mut pumps: Pumps) {
    let Ok(vm) = task.vm() else { return };
    let task_id = task.order.id.as_str();
    let status = status(task_id, vm).await;
    // containerd has to hear of the start first.
    task.reaches(|state| *state != State::Starting).await;
    task.exited(vm, status);
    if !pumps.drain(DRAIN_MAX).await {
        tracing::warn!(task_id, "the client did not read all output in time");
    }
    task.drained.send_replace(true);
    if let Err(left) = vm.release().await {
        tracing::error!(task_id, %left, "cannot end the VM; Delete will try again");
    }
    // Until then the FIFOs keep what a restarting containerd has not read yet.
    task.reaches(|state| matches!(state, State::Deleted(_)))
        .await;
    drop(pumps);
}

/// Waits for the program's end. A VM without an agent is of no use and is ended.
async fn status(task_id: &str, vm: &Vm) -> u32 {
    let ended = tokio::select! {
        biased;
        status = vm.agent.wait() => status,
        end = vm.sandbox.vm_ended() => {
            log_end(task_id, &end);
            return STATUS_KILLED;
        }
    };
    match ended {
        Ok(status) => status,
        Err(error) => {
            tracing::debug!(task_id, %error, "the agent is gone");
            vm.sandbox.kill_vm();
            log_end(task_id, &vm.sandbox.vm_ended().await);
            STATUS_KILLED
        }
    }
}

fn log_end(task_id: &str, end: &super::VmEnding) {
    let console = end.console_tail.trim_end();
    tracing::warn!(task_id, reason = %end.reason, console, "the VM ended");
}

impl Task {
    fn exited(&self, vm: &Vm, status: u32) {
        let exit = Exit {
            status,
            at: SystemTime::now(),
        };
        // A created task that is being deleted has no exit to tell of.
        if self.make(Move::Exit(exit)).is_err() {
            return;
        }
        vm.sandbox.record_exit(exit.status, exit.at);
        self.events.publish(Event::Exit(TaskExit {
            container_id: self.order.id.clone(),
            id: self.order.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        }));
    }
}

//! The watcher of a task: from its creation until nothing of the task is left.
//!
//! ```text
//! program or VM ends ──► execs ended ──► exit kept in the journal ──► output, as long as it moves ──► TaskExit
//!                          VM ended, removed ◄── output drained, FIFOs closed ◄──────────────────────────┘
//!                                       Delete ──► journal removed
//! ```
//!
//! `TaskExit` waits for no reader, and the output does not wait for `Delete`: `ctr` asks for `Delete` only
//! after it has read the FIFOs to their end. But loggers stop reading when they hear of the exit (nerdctl's
//! does), so output that is being read arrives first, within the bounds of [`OutputWait`]. Clients expect
//! that the pid of a killed task has disappeared when they hear of the exit: so the VM of a killed task
//! gets [`GONE_MAX`] as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::fatal::is_kill;
use super::process::exit_event;
use super::{Exit, LoadedVm, Move, State, Task};
use crate::cleanup::STATUS_KILLED;
use crate::events::Event;
use crate::log::spawn_in_span;
use crate::signals;
use crate::stdio::Pumps;
use crate::vm::VmEnd;

/// The wait after any exit but a kill: the program's logger may just be starting.
const AFTER_END: OutputWait = OutputWait {
    still_max: Duration::from_secs(1),
    max: Duration::from_secs(10),
};
/// The wait after a kill: clients wait for the exit.
const AFTER_KILL: OutputWait = OutputWait {
    still_max: Duration::from_millis(100),
    max: Duration::from_secs(2),
};
/// How long the TaskExit of a killed task, once its output has been read, waits for the VM's end.
const GONE_MAX: Duration = Duration::from_millis(400);

/// How long an exit waits for its program's output.
#[derive(Clone, Copy, Debug)]
struct OutputWait {
    /// The longest time in which no byte is read.
    still_max: Duration,
    /// The longest wait, also while bytes are read.
    max: Duration,
}

/// Watches init from its creation until the task is deleted. Runs once per task, in a task of the runtime.
pub(super) async fn watch(task: Arc<Task>, mut pumps: Pumps) {
    let Ok(vm) = task.vm() else { return };
    let name = task.init.name();
    let reported = status(name, vm).await;
    // A signal that is asked for after the report has not ended init.
    let by_report = reported.map(|status| task.init.fatal.status(Some(status)));
    // containerd has to hear of the start first.
    task.init.reaches(|state| *state != State::Starting).await;
    task.ending.send_replace(true);
    spawn_in_span({
        let task = task.clone();
        async move { task.unpause().await }
    });
    task.end_execs(vm).await;
    let exit = Exit::now(by_report.unwrap_or_else(|| task.init.fatal.status(None)));
    // If the shim is killed from here on, `delete` reports the exit.
    vm.workload.record_exit(exit.status, exit.at);
    if is_kill(reported) {
        task.notice_oom(vm).await;
    }
    if exit.status == STATUS_KILLED {
        if output_that_moves(&task, &mut pumps, AFTER_KILL).await {
            vm.workload.kill_vm();
            let _ = timeout(GONE_MAX, vm.workload.vm_ended()).await;
        }
    } else {
        // Output that has not been read by now does not delay TaskExit.
        let _ = output_that_moves(&task, &mut pumps, AFTER_END).await;
    }
    task.exited(exit);
    finish_all_output(&task, &mut pumps).await;
    task.init.set_drained();
    if let Err(left) = vm.release().await {
        tracing::error!(name, %left, "cannot end the VM; Delete will try again");
    }
    // Until then the FIFOs keep the output that a restarting containerd has not read yet.
    task.init
        .reaches(|state| matches!(state, State::Deleted(_)))
        .await;
    drop(pumps);
}

/// Waits for the output of an ended program while somebody reads it, and while the exit is not overdue;
/// whether the output came to its end.
async fn output_that_moves(task: &Task, pumps: &mut Pumps, wait: OutputWait) -> bool {
    let output = finish_all_output(task, pumps);
    tokio::pin!(output);
    let moving = async {
        let mut read = task.init.switch.bytes_read();
        while timeout(wait.still_max, &mut output).await.is_err() {
            let before = std::mem::replace(&mut read, task.init.switch.bytes_read());
            if read == before {
                return false;
            }
        }
        true
    };
    tokio::select! {
        biased;
        moved = timeout(wait.max, moving) => moved.unwrap_or(false),
        () = task.init.fatal.overdue() => false,
    }
}

/// Waits for the output of init and of all execs.
async fn finish_all_output(task: &Task, pumps: &mut Pumps) {
    task.init.finish_output(pumps).await;
    for exec in task.execs_where(|_| true) {
        exec.process.drained().await;
    }
}

/// Waits for init's exit and returns the status that the guest reports; `None` when the VM ends without a
/// report. A VM whose agent fails is of no use and is ended.
async fn status(name: &str, vm: &LoadedVm) -> Option<u32> {
    let ended = tokio::select! {
        biased;
        status = vm.programs().wait("") => status,
        end = vm.workload.vm_ended() => {
            log_end(name, &end);
            return None;
        }
    };
    match ended {
        Ok(status) => Some(status),
        Err(error) => {
            tracing::debug!(name, %error, "the agent is gone");
            vm.workload.kill_vm();
            log_end(name, &vm.workload.vm_ended().await);
            None
        }
    }
}

fn log_end(name: &str, end: &VmEnd) {
    let console = end.console_tail.trim_end();
    tracing::warn!(name, reason = %end.reason, console, "the VM ended");
}

impl Task {
    /// Kills the execs that outlive init and waits for their exits: init's exit is the last that containerd
    /// hears of.
    async fn end_execs(&self, vm: &LoadedVm) {
        let live = self.execs_where(|exec| exec.process.state().is_live());
        for exec in &live {
            let (workload, exec) = (vm.workload.clone(), exec.clone());
            spawn_in_span(async move {
                // An error for an exec that has exited already is as good.
                let _ = workload
                    .programs()
                    .kill(exec.id(), signals::SIGKILL, false)
                    .await;
            });
        }
        for exec in &live {
            exec.process.reaches(|state| state.exit().is_some()).await;
        }
    }

    fn exited(&self, exit: Exit) {
        // A created task that is being deleted has no exit to report.
        let _ = self.init.transition_and_publish(Move::Exit(exit), |_| {
            let event = exit_event(self, &self.order.id, self.pid(), exit);
            self.events.publish(Event::Exit(event));
        });
    }
}

//! The watchers: one of the task, from its creation until nothing of it is left, and one of each exec.
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
use std::time::{Duration, SystemTime};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::time::timeout;
use wasmvm_protocol::agent::containerd::events::task::TaskExit;

use super::exec::Running;
use super::pause::Flow;
use super::{Exec, Exit, Move, Process, State, Task, Vm, signals};
use crate::cleanup::STATUS_KILLED;
use crate::events::Event;
use crate::stdio::Pumps;
use crate::vm::VmEnd;

/// How long an exec may outlive init. After that time the exec counts as killed: the VM's end will kill it.
const EXEC_ENDS_MAX: Duration = Duration::from_secs(1);
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
pub async fn live(task: Arc<Task>, mut pumps: Pumps) {
    let Ok(vm) = task.vm() else { return };
    let name = task.init.name();
    let reported = status(name, vm).await;
    // A signal that is asked for after the report has not ended init.
    let by_report = reported.map(|status| task.init.fatal.status(Some(status)));
    // containerd has to hear of the start first.
    task.init.reaches(|state| *state != State::Starting).await;
    task.ending.send_replace(true);
    tokio::spawn({
        let task = task.clone();
        async move { task.unpause().await }
    });
    task.end_execs(vm).await;
    let exit = now(by_report.unwrap_or_else(|| task.init.fatal.status(None)));
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

/// Watches an exec from its start until the exec is deleted. Runs once per exec that has started.
pub async fn live_exec(task: Arc<Task>, exec: Arc<Exec>, running: Running) {
    let Ok(vm) = task.vm() else { return };
    let Running { mut pumps } = running;
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
    let exit = now(exec.process.fatal.status(reported));
    let told = exec.process.make_telling(Move::Exit(exit), |_| {
        let event = exit_event(&task, exec.id(), exec.pid(), exit);
        task.events.publish(Event::Exit(event));
    });
    debug_assert!(told.is_ok(), "an exec that runs ends once");
    if reported.is_none() {
        tokio::spawn(linger(task.clone(), exec.clone()));
    }
    finish_output(&exec.process, &mut pumps).await;
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
        match vm.agent.wait(exec.id()).await {
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
    finish_output(&task.init, pumps).await;
    for exec in task.execs_where(|_| true) {
        exec.process.drained().await;
    }
}

async fn finish_output(process: &Process, pumps: &mut Pumps) {
    if !pumps.drain().await {
        let name = process.name();
        tracing::warn!(name, "the client did not read all output in time");
    }
}

/// Whether a program was ended by SIGKILL, perhaps a kernel's, or with its VM.
fn is_kill(reported: Option<u32>) -> bool {
    reported.is_none_or(|status| status == STATUS_KILLED)
}

/// Waits for init's exit and returns the status that the guest reports; `None` when the VM ends without a
/// report. A VM whose agent fails is of no use and is ended.
async fn status(name: &str, vm: &Vm) -> Option<u32> {
    let ended = tokio::select! {
        biased;
        status = vm.agent.wait("") => status,
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

/// Waits for an exec's exit and returns the status that the guest reports; `None` when there will be no
/// report.
async fn exec_status(exec: &Exec, vm: &Vm) -> Option<u32> {
    let ended = tokio::select! {
        biased;
        status = vm.agent.wait(exec.id()) => status,
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
pub(super) async fn forget(task: &Arc<Task>, exec: &Arc<Exec>, vm: &Vm) {
    let agent = vm.agent.clone();
    let (task, exec) = (task.clone(), exec.clone());
    let stopped = task.flow.now() != Flow::Running;
    let forgotten = async move {
        if let Err(error) = agent.delete(exec.id()).await {
            let name = exec.process.name();
            tracing::debug!(name, %error, "the guest may remember it");
        }
    };
    if stopped {
        tokio::spawn(forgotten);
        return;
    }
    tokio::pin!(forgotten);
    tokio::select! {
        () = &mut forgotten => {}
        () = task.flow.stopping() => {}
    }
}

fn log_end(name: &str, end: &VmEnd) {
    let console = end.console_tail.trim_end();
    tracing::warn!(name, reason = %end.reason, console, "the VM ended");
}

fn now(status: u32) -> Exit {
    let at = SystemTime::now();
    Exit { status, at }
}

fn exit_event(task: &Task, id: &str, pid: u32, exit: Exit) -> TaskExit {
    TaskExit {
        container_id: task.order.id.clone(),
        id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(Timestamp::from(exit.at)),
        ..Default::default()
    }
}

impl Task {
    /// Kills the execs that outlive init and waits for their exits: init's exit is the last that containerd
    /// hears of.
    async fn end_execs(&self, vm: &Vm) {
        let live = self.execs_where(|exec| exec.process.state().is_live());
        for exec in &live {
            let (agent, exec) = (vm.agent.clone(), exec.clone());
            tokio::spawn(async move {
                // An error for an exec that has exited already is as good.
                let _ = agent.kill(exec.id(), signals::SIGKILL, false).await;
            });
        }
        for exec in &live {
            exec.process.reaches(|state| state.exit().is_some()).await;
        }
    }

    /// Keeps an exec that has ended for containerd, but may still run in the guest: until [`linger`] is
    /// done, the exec keeps its slot, its id and its place among the execs that a task may have.
    pub(super) fn keep_lingering(&self, exec: &Arc<Exec>) {
        let id = exec.id().to_owned();
        self.lingering().insert(id, exec.clone());
    }

    fn exited(&self, exit: Exit) {
        // A created task that is being deleted has no exit to report.
        let _ = self.init.make_telling(Move::Exit(exit), |_| {
            let event = exit_event(self, &self.order.id, self.pid(), exit);
            self.events.publish(Event::Exit(event));
        });
    }
}

//! A task: its VM, its program and its streams, from `Create` to `Delete`.
//!
//! [`state`] says which moves are allowed when; this module makes them. Each state-changing request runs
//! in a task of the runtime that no caller can drop, as ttrpc drops a handler at its deadline. Beside the
//! requests runs one watcher ([`watcher`]), which sees the program or the VM end. The requests that containerd
//! polls (State, Wait, Pids, Connect) are answered without asking the guest.
//!
//! The state of a task, and what may be awaited by whoever holds it:
//!
//! | cell | says | held while this is awaited |
//! |---|---|---|
//! | `Process.state` of each process | Creating to Deleted, with the exit; changed by `transition` alone | nothing; events are queued under it, so that they keep the order of the moves |
//! | `Process.drained`, `.fatal` | whether a stream is open; the signal that is to end the program | nothing |
//! | `Process.size`, `Exec.slot` | a terminal's size that the guest has not got; the slot of an exec's program | nothing |
//! | `Task.execs`, then `.lingering` | the execs; those given up that may still run. Locked in this order | nothing |
//! | `Task.abort`, `.ending` | Delete came during Create; init has exited. Set once | nothing |
//! | `PauseControl.flow`, `.runs` | whether the VM runs; set by the holder of `changing` | nothing |
//! | `PauseControl.kept` | messages for a guest that is stopped; locked before `flow` is read | nothing |
//! | `Task.looking` | whether the guest was asked what it does a moment ago | a tenth of a second |
//! | `PauseControl.changing` | one Pause or Resume at a time | the VMM's answer, then the guest's to what was kept for it |
//! | `Task.updating` | one Update at a time | the host's cgroup files, the guest's answer to a change |
//! | `LoadedVm.destroyed` | whether anything of the VM is left | the end of the VM and the removal of all that is its own |
//!
//! Nobody holds two of the last three at a time. What may take long (the guest, the VMM, the kernel) is
//! awaited under those three alone, and always with a bound.

mod create;
mod diagnostics;
mod error;
mod exec;
mod exec_watcher;
mod execs;
mod fatal;
mod kill;
mod pause;
mod process;
mod registry;
mod resources;
mod state;
mod terminal;
mod time_of_day;
mod watcher;

#[cfg(test)]
pub(crate) mod fakes;

#[cfg(test)]
mod answers_tests;

#[cfg(test)]
mod contract_tests;

#[cfg(test)]
mod model_tests;

pub(crate) use create::TaskOrder;
pub(crate) use diagnostics::TaskView;
pub(crate) use error::TaskError;
pub(crate) use exec::{Exec, ExecOrder};
pub(crate) use pause::Flow;
pub(crate) use process::Report;
pub(crate) use registry::Tasks;
pub(crate) use state::{Exit, IllegalMove, Move, State};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;
use wasmvm_protocol::agent::containerd::events::task::{TaskDelete, TaskStart};

use crate::agent::Programs;
use crate::error::Refusal;
use crate::events::{Event, EventSink};
use crate::workload::{Workload, WorkloadOrder};

use pause::PauseControl;
use process::{Claim, Process, never_ran};

/// The workload, once the program is loaded.
struct LoadedVm {
    workload: Arc<dyn Workload>,
    /// Whether nothing of the VM is left; held while the VM is being removed.
    destroyed: tokio::sync::Mutex<bool>,
}

impl LoadedVm {
    fn programs(&self) -> &dyn Programs {
        self.workload.programs()
    }

    /// Removes all but the record of the exit, unless `Delete` was first. For the watcher, once the output
    /// is drained.
    async fn release(&self) -> Result<(), Refusal> {
        let destroyed = self.destroyed.lock().await;
        if *destroyed {
            return Ok(());
        }
        self.workload.release().await
    }

    /// Removes all that is left, for `Delete`. Never runs at the same time as [`LoadedVm::release`].
    async fn destroy(&self) -> Result<(), Refusal> {
        let mut destroyed = self.destroyed.lock().await;
        if !*destroyed {
            self.workload.destroy().await?;
            *destroyed = true;
        }
        Ok(())
    }
}

/// A task: its init, its execs and their VM.
pub(crate) struct Task {
    order: WorkloadOrder,
    events: Arc<dyn EventSink>,
    init: Process,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    /// Execs that were given up and may still run in the guest.
    lingering: Mutex<BTreeMap<String, Arc<Exec>>>,
    flow: PauseControl,
    vm: OnceLock<LoadedVm>,
    /// Held during an Update: no Update builds on limits that another one may take back.
    updating: tokio::sync::Mutex<()>,
    /// Held for a while after the guest was asked what its programs do.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// Set when `Delete` comes during `Create`.
    abort: watch::Sender<bool>,
    /// Set when init has exited: the execs that still run have to end.
    ending: watch::Sender<bool>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("order", &self.order)
            .field("init", &self.init)
            .field("execs", &*self.execs())
            .field("flow", &self.flow)
            .finish_non_exhaustive()
    }
}

impl Task {
    fn new(order: TaskOrder, events: Arc<dyn EventSink>) -> Self {
        let name = format!("task {}", order.workload.id);
        Self {
            order: order.workload,
            events,
            init: Process::new(name, order.stdio, order.terminal, State::Creating),
            execs: Mutex::default(),
            lingering: Mutex::default(),
            flow: PauseControl::default(),
            vm: OnceLock::new(),
            updating: tokio::sync::Mutex::new(()),
            looking: Arc::default(),
            abort: watch::Sender::new(false),
            ending: watch::Sender::new(false),
        }
    }

    fn vm(&self) -> Result<&LoadedVm, TaskError> {
        let unborn = || TaskError::Unborn(self.init.name().to_owned());
        self.vm.get().ok_or_else(unborn)
    }

    fn pid(&self) -> u32 {
        self.vm.get().map_or(0, |vm| vm.workload.pid())
    }

    /// The map is whole after every statement, so a panic elsewhere has not broken it.
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The map of lingering execs is whole after every statement, as that of all execs is.
    fn lingering(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.lingering
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The execs for which `wanted` holds, ordered by id.
    pub(crate) fn execs_where(&self, wanted: impl Fn(&Exec) -> bool) -> Vec<Arc<Exec>> {
        let execs = self.execs();
        execs
            .values()
            .filter(|exec| wanted(exec))
            .cloned()
            .collect()
    }

    /// The exec of this id.
    ///
    /// # Errors
    /// [`TaskError::NoProcess`]
    pub(crate) fn exec_of(&self, id: &str) -> Result<Arc<Exec>, TaskError> {
        self.execs()
            .get(id)
            .cloned()
            .ok_or_else(|| TaskError::NoProcess {
                task: self.order.id.clone(),
                exec: id.to_owned(),
            })
    }

    /// Waits until init has exited.
    async fn ends(&self) {
        // `wait_for` fails only without a sender, and the task holds the sender.
        let _ = self.ending.subscribe().wait_for(|ending| *ending).await;
    }

    /// The task's id, unique within its namespace.
    #[must_use]
    pub(crate) fn id(&self) -> &str {
        &self.order.id
    }

    /// Whether the VM runs.
    #[must_use]
    pub(crate) fn flow(&self) -> Flow {
        self.flow.now()
    }

    /// Pid, state and streams of init, as State, Pids and Connect report them.
    ///
    /// # Errors
    /// [`TaskError::Unborn`] during `Create`.
    pub(crate) fn report(&self) -> Result<Report, TaskError> {
        let vm = self.vm()?;
        Ok(Report {
            pid: vm.workload.pid(),
            state: self.init.state(),
            stdio: self.init.stdio.clone(),
            terminal: self.init.terminal,
        })
    }

    /// The path of the bundle; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub(crate) fn bundle(&self) -> String {
        self.order.bundle.to_string_lossy().into_owned()
    }

    /// Waits for init's exit.
    ///
    /// # Errors
    /// [`TaskError::Unborn`] during `Create`.
    pub(crate) async fn wait(&self) -> Result<Exit, TaskError> {
        self.vm()?;
        self.init.wait().await
    }

    /// Lets the program run; returns the task's pid.
    ///
    /// # Errors
    /// [`TaskError`]
    pub(crate) async fn start(&self) -> Result<u32, TaskError> {
        let vm = self.vm()?;
        self.init.transition(Move::Start)?;
        self.init.switch.open_stdin();
        let started = tokio::select! {
            biased;
            started = vm.programs().start("") => started.map_err(TaskError::from),
            end = vm.workload.vm_ended() => Err(TaskError::VmEnded(end.reason)),
        };
        if let Err(error) = started {
            if matches!(&error, TaskError::Agent(agent) if agent.is_silence()) {
                // Whether the program runs is unknown: the VM is ended, so that the answer does not turn
                // out wrong later.
                vm.workload.kill_vm();
            }
            self.init.transition(Move::StartFailed)?;
            return Err(error);
        }
        self.init.transition_and_publish(Move::Started, |_| {
            self.events.publish(Event::Start(TaskStart {
                container_id: self.order.id.clone(),
                pid: vm.workload.pid(),
                ..Default::default()
            }));
        })?;
        if let Err(hook) = vm.workload.poststart().await {
            // As with runc, the start has failed and the running program is ended.
            vm.workload.kill_vm();
            return Err(TaskError::Hook(hook));
        }
        Ok(vm.workload.pid())
    }

    /// Ends standard input once what the client wrote has been read.
    pub(crate) fn close_stdin(&self) {
        self.init.switch.close_stdin();
    }

    /// Waits until the output is drained, and removes the VM and all that is left. Idempotent; during
    /// `Create`, `delete` ends the creation.
    ///
    /// # Errors
    /// [`TaskError`]; the task stays and `delete` may be called again.
    pub(crate) async fn delete(&self) -> Result<Exit, TaskError> {
        if self.init.state() == State::Creating {
            self.abort.send_replace(true);
            self.init.reaches(|state| *state != State::Creating).await;
        }
        match self.init.claim_delete().await? {
            Claim::Done(exit) => Ok(exit),
            Claim::Ours(state) => {
                if state == State::Created {
                    self.vm()?.workload.kill_vm();
                }
                self.finish_delete().await
            }
        }
    }

    async fn finish_delete(&self) -> Result<Exit, TaskError> {
        let vm = self.vm()?;
        self.init.switch.begin_drain();
        for exec in self.execs_where(|_| true) {
            exec.process.switch.begin_drain();
        }
        // Init counts as drained once the execs' output is drained as well.
        self.init.drained().await;
        if let Err(source) = vm.destroy().await {
            self.init.transition(Move::DeleteFailed)?;
            let name = self.init.name().to_owned();
            return Err(TaskError::Destroy { name, source });
        }
        self.forget_execs();
        let state = self
            .init
            .transition_and_publish(Move::DeleteDone, |state| {
                let exit = state.exit().unwrap_or_else(never_ran);
                self.events.publish(Event::Delete(TaskDelete {
                    container_id: self.order.id.clone(),
                    pid: vm.workload.pid(),
                    exit_status: exit.status,
                    exited_at: MessageField::some(Timestamp::from(exit.at)),
                    ..Default::default()
                }));
            })?;
        Ok(state.exit().unwrap_or_else(never_ran))
    }

    /// Deletes the execs that are left with their task; a waiter for an exec that was never started is
    /// released.
    fn forget_execs(&self) {
        for exec in std::mem::take(&mut *self.execs()).into_values() {
            if exec.process.transition(Move::Delete(never_ran())).is_ok() {
                // `DeleteDone` is always allowed after `Delete`.
                let _ = exec.process.transition(Move::DeleteDone);
            }
        }
    }
}

//! One task: its VM, its program and its streams, from `Create` to `Delete`.
//!
//! [`machine`] says what may happen when; here is what does happen. Each state-changing request runs
//! in a task of the runtime that nobody can drop, as ttrpc gives a handler up at its deadline. Next to
//! them runs one watcher ([`life`]), which sees the program or the VM end. What containerd polls
//! (State, Wait, Pids, Connect) is answered from here alone and never asks the guest.

mod create;
mod life;
mod machine;
mod registry;
mod seam;
mod signals;

#[cfg(test)]
pub mod fakes;

pub use machine::{Exit, IllegalMove, Move, State};
pub use registry::{TaskOrder, Tasks};
pub use seam::{SandboxMaker, SandboxOrder, TaskSandbox, VmEnding};

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;
use wasmvm_protocol::agent::containerd::events::task::{TaskDelete, TaskStart};

use crate::agent::{Agent, AgentError};
use crate::error::{ErrorCode, Refusal};
use crate::events::{Event, EventSink};
use crate::stdio::{StdinSwitch, StdioNames};

/// How long after its acknowledgement a SIGKILL may take to show. Then the VM is ended.
const KILL_SHOWS_MAX: Duration = Duration::from_secs(3);

/// Why a request about a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Not in this state.
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// Nothing to send a signal to.
    #[error("the program of task {0} has finished")]
    Finished(String),
    /// Still in `Create`.
    #[error("task {0} is being created")]
    Unborn(String),
    /// Not a signal of Linux.
    #[error("signal {0} does not exist; Linux has 1 to {max}", max = signals::SIGNAL_MAX)]
    Signal(u32),
    /// The agent refused or was silent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A poststart hook failed.
    #[error(transparent)]
    Hook(Refusal),
    /// The VM ended first.
    #[error("the VM ended: {0}")]
    VmEnded(String),
    /// The host could not remove what belongs to the task.
    #[error("cannot remove what is left of task {id}")]
    Destroy {
        /// The task.
        id: String,
        /// What the host says.
        source: Refusal,
    },
}

impl TaskError {
    /// How containerd is answered.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Illegal(illegal) => illegal.code(),
            Self::Finished(_) | Self::Unborn(_) => ErrorCode::NotFound,
            Self::Signal(_) => ErrorCode::InvalidArgument,
            Self::Agent(error) => error.code(),
            Self::VmEnded(_) => ErrorCode::Unavailable,
            Self::Hook(source) | Self::Destroy { source, .. } => source.code,
        }
    }
}

impl From<TaskError> for Refusal {
    fn from(error: TaskError) -> Self {
        Self::new(error.code(), &error)
    }
}

/// What containerd is told of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The VMM's pid; 0 when the VM never came to be.
    pub pid: u32,
    /// Where the task is.
    pub state: State,
    /// Its streams.
    pub stdio: StdioNames,
}

/// What exists once the program is loaded.
struct Vm {
    sandbox: Arc<dyn TaskSandbox>,
    agent: Agent,
    stdin: StdinSwitch,
    /// Whether nothing is left; held while it is being removed.
    destroyed: tokio::sync::Mutex<bool>,
}

impl Vm {
    /// The watcher, once nothing more comes: all but the record of the exit, unless `Delete` was first.
    async fn release(&self) -> Result<(), Refusal> {
        let destroyed = self.destroyed.lock().await;
        if *destroyed {
            return Ok(());
        }
        self.sandbox.release().await
    }

    /// `Delete`. Never at the same time as [`Vm::release`].
    async fn destroy(&self) -> Result<(), Refusal> {
        let mut destroyed = self.destroyed.lock().await;
        if !*destroyed {
            self.sandbox.destroy().await?;
            *destroyed = true;
        }
        Ok(())
    }
}

/// One task.
pub struct Task {
    order: SandboxOrder,
    names: StdioNames,
    events: Arc<dyn EventSink>,
    state: watch::Sender<State>,
    vm: OnceLock<Vm>,
    /// `Delete` came during `Create`.
    abort: watch::Sender<bool>,
    /// The streams are closed; the VM has no more to say.
    drained: watch::Sender<bool>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("order", &self.order)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

impl Task {
    fn new(order: SandboxOrder, names: StdioNames, events: Arc<dyn EventSink>) -> Self {
        Self {
            order,
            names,
            events,
            state: watch::Sender::new(State::Creating),
            vm: OnceLock::new(),
            abort: watch::Sender::new(false),
            drained: watch::Sender::new(false),
        }
    }

    /// The only place where the state changes.
    fn make(&self, asked: Move) -> Result<State, IllegalMove> {
        let mut outcome = None;
        self.state.send_if_modified(|state| {
            let before = *state;
            let after = before.after(asked);
            outcome = Some(after.ok_or(before));
            *state = after.unwrap_or(before);
            after.is_some()
        });
        let id = &self.order.id;
        match outcome {
            Some(Ok(state)) => {
                tracing::debug!(task_id = %id, state = state.word(), "task moved");
                Ok(state)
            }
            Some(Err(state)) => Err(self.illegal(state, asked)),
            None => Err(self.illegal(*self.state.borrow(), asked)),
        }
    }

    fn illegal(&self, state: State, asked: Move) -> IllegalMove {
        IllegalMove {
            id: self.order.id.clone(),
            state,
            asked,
        }
    }

    /// Waits for a state; the sender lives as long as the task, so the wait cannot fail.
    async fn reaches(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut states = self.state.subscribe();
        let reached = states.wait_for(wanted).await.map(|state| *state);
        reached.unwrap_or_else(|_| *self.state.borrow())
    }

    fn vm(&self) -> Result<&Vm, TaskError> {
        self.vm
            .get()
            .ok_or_else(|| TaskError::Unborn(self.order.id.clone()))
    }

    fn pid(&self) -> u32 {
        self.vm.get().map_or(0, |vm| vm.sandbox.pid())
    }

    /// What State, Pids and Connect answer from.
    ///
    /// # Errors
    /// [`TaskError::Unborn`] during `Create`.
    pub fn report(&self) -> Result<Report, TaskError> {
        let vm = self.vm()?;
        Ok(Report {
            pid: vm.sandbox.pid(),
            state: *self.state.borrow(),
            stdio: self.names.clone(),
        })
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.order.bundle.to_string_lossy().into_owned()
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// [`TaskError::Unborn`] during `Create`.
    pub async fn wait(&self) -> Result<Exit, TaskError> {
        self.vm()?;
        let state = self.reaches(|state| state.exit().is_some()).await;
        state
            .exit()
            .ok_or_else(|| TaskError::Unborn(self.order.id.clone()))
    }

    /// Lets the program run: its pid.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn start(&self) -> Result<u32, TaskError> {
        let vm = self.vm()?;
        self.make(Move::Start)?;
        vm.stdin.open();
        let started = tokio::select! {
            biased;
            started = vm.agent.start() => started.map_err(TaskError::from),
            end = vm.sandbox.vm_ended() => Err(TaskError::VmEnded(end.reason)),
        };
        if let Err(error) = started {
            if matches!(&error, TaskError::Agent(agent) if agent.is_silence()) {
                // It may run or not: nobody knows, so nobody may find out later.
                vm.sandbox.kill_vm();
            }
            self.make(Move::StartFailed)?;
            return Err(error);
        }
        self.make(Move::Started)?;
        self.events.publish(Event::Start(TaskStart {
            container_id: self.order.id.clone(),
            pid: vm.sandbox.pid(),
            ..Default::default()
        }));
        if let Err(hook) = vm.sandbox.poststart().await {
            // As runc: the start has failed, and what runs is ended.
            vm.sandbox.kill_vm();
            return Err(TaskError::Hook(hook));
        }
        Ok(vm.sandbox.pid())
    }

    /// Sends a signal to the program. The agent gets [`crate::agent::KILL_MAX`]; what is meant to end
    /// the program ends the VM when the agent does not answer.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn kill(self: &Arc<Self>, signal: u32) -> Result<(), TaskError> {
        let vm = self.vm()?;
        if signal > signals::SIGNAL_MAX {
            return Err(TaskError::Signal(signal));
        }
        if self.state.borrow().exit().is_some() {
            return Err(TaskError::Finished(self.order.id.clone()));
        }
        if signal == signals::PROBE {
            return Ok(());
        }
        let task_id = &self.order.id;
        match vm.agent.kill(signal).await {
            Ok(()) if signal == signals::SIGKILL => {
                tokio::spawn(self.clone().insist());
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(AgentError::Refused {
                code: ErrorCode::NotFound,
                ..
            }) => Err(TaskError::Finished(task_id.clone())),
            Err(error)
                if signal == signals::SIGKILL
                    || error.is_silence() && signals::ends_by_default(signal) =>
            {
                tracing::warn!(%task_id, signal, %error, "the guest does not obey; ending the VM");
                vm.sandbox.kill_vm();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A guest that acknowledges SIGKILL and goes on is ended from outside.
    async fn insist(self: Arc<Self>) {
        let ended = self.reaches(|state| state.exit().is_some());
        if tokio::time::timeout(KILL_SHOWS_MAX, ended).await.is_err() {
            tracing::warn!(task_id = %self.order.id, "SIGKILL shows no effect; ending the VM");
            if let Ok(vm) = self.vm() {
                vm.sandbox.kill_vm();
            }
        }
    }

    /// Ends standard input once what the client wrote has been read.
    pub fn close_stdin(&self) {
        if let Some(vm) = self.vm.get() {
            vm.stdin.close();
        }
    }

    /// Waits until output and VM are at their end and removes what is left. Idempotent; during
    /// `Create` it ends that.
    ///
    /// # Errors
    /// [`TaskError`]; the task stays and `delete` may be called again.
    pub async fn delete(&self) -> Result<Exit, TaskError> {
        loop {
            let never_ran = Exit {
                status: 0,
                at: SystemTime::now(),
            };
            let state = *self.state.borrow();
            match state {
                State::Creating => {
                    self.abort.send_replace(true);
                    self.reaches(|state| *state != State::Creating).await;
                }
                State::Deleting(_) => {
                    self.reaches(|state| !matches!(state, State::Deleting(_)))
                        .await;
                }
                State::Deleted(exit) => return Ok(exit),
                _ => {
                    self.make(Move::Delete(never_ran))?;
                    if state == State::Created {
                        self.vm()?.sandbox.kill_vm();
                    }
                    return self.finish_delete().await;
                }
            }
        }
    }

    async fn finish_delete(&self) -> Result<Exit, TaskError> {
        let vm = self.vm()?;
        // Fails only when the sender is gone, and the sender is ours.
        let _ = self.drained.subscribe().wait_for(|drained| *drained).await;
        if let Err(source) = vm.destroy().await {
            self.make(Move::DeleteFailed)?;
            let id = self.order.id.clone();
            return Err(TaskError::Destroy { id, source });
        }
        let state = self.make(Move::DeleteDone)?;
        let exit = state
            .exit()
            .ok_or_else(|| self.illegal(state, Move::DeleteDone))?;
        self.events.publish(Event::Delete(TaskDelete {
            container_id: self.order.id.clone(),
            pid: vm.sandbox.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        }));
        Ok(exit)
    }
}

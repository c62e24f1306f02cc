//! A further program of a task, from `Exec` until the exec is deleted.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::sync::watch;
use wasmvm_protocol::agent::containerd::api::ExecProcessRequest;

use super::{Exit, Process, Report, State, TaskError};
use crate::bundle::{PROCESS_TYPE_URL, ProcessSpec};
use crate::error::{ErrorCode, Refusal};
use crate::stdio::StdioNames;
use crate::workload::SlotLease;

/// The fields of an `Exec` request that the shim uses.
#[derive(Clone, Debug)]
pub(crate) struct ExecOrder {
    /// Unique within the task.
    pub id: String,
    /// The OCI process: arguments, environment, user and working directory.
    pub spec: ProcessSpec,
    /// The client's streams, as the request names them.
    pub stdio: StdioNames,
    /// Whether the streams are a terminal's.
    pub terminal: bool,
}

impl ExecOrder {
    /// The order of a request, whose spec is an OCI process.
    ///
    /// # Errors
    /// `InvalidArgument` for a spec that is missing, of another type, or no OCI process.
    pub(crate) fn of(request: ExecProcessRequest) -> Result<Self, Refusal> {
        let refused = |sentence: String| Refusal::say(ErrorCode::InvalidArgument, sentence);
        let spec = request
            .spec
            .into_option()
            .ok_or_else(|| refused("the exec has no spec".into()))?;
        if spec.type_url != PROCESS_TYPE_URL {
            let sentence = format!(
                "the spec of the exec is of type {:?}, not {PROCESS_TYPE_URL}",
                spec.type_url
            );
            return Err(refused(sentence));
        }
        let (terminal, stdin) = (request.terminal, request.stdin);
        Ok(Self {
            id: request.exec_id,
            spec: ProcessSpec::parse(&spec.value)?,
            stdio: StdioNames::of(terminal, stdin, request.stdout, request.stderr),
            terminal,
        })
    }
}

/// A further program of a task, from `Exec` until the exec is deleted.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(super) process: Process,
    pub(super) id: String,
    pub(super) spec: ProcessSpec,
    pub(super) pid: OnceLock<u32>,
    /// Whether the guest has been asked to load the program.
    pub(super) loaded: AtomicBool,
    /// The program's slot, held as long as the guest may have the artifact mapped.
    slot: Mutex<Option<SlotLease>>,
    /// True once the exec is given up: the guest's report of the exit is not awaited any more.
    abandoned: watch::Sender<bool>,
}

/// The name of an exec in messages, as in "exec b of task a"; `task` is the task's name.
pub(super) fn name(exec_id: &str, task: &str) -> String {
    format!("exec {exec_id} of {task}")
}

impl Exec {
    pub(super) fn new(task: &str, order: ExecOrder) -> Self {
        let name = name(&order.id, task);
        Self {
            process: Process::new(name, order.stdio, order.terminal, State::Created),
            id: order.id,
            spec: order.spec,
            pid: OnceLock::new(),
            loaded: AtomicBool::new(false),
            slot: Mutex::default(),
            abandoned: watch::Sender::new(false),
        }
    }

    /// The exec id, unique within the task.
    #[must_use]
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The pid that containerd sees; 0 before the exec has started.
    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.pid.get().copied().unwrap_or(0)
    }

    /// Pid, state and streams, as State, Pids and Connect report them.
    #[must_use]
    pub(crate) fn report(&self) -> Report {
        Report {
            pid: self.pid(),
            state: self.process.state(),
            stdio: self.process.stdio.clone(),
            terminal: self.process.terminal,
        }
    }

    /// Waits for the exec's exit, also before the start.
    ///
    /// # Errors
    /// None: every registered exec reaches an exit.
    pub(crate) async fn wait(&self) -> Result<Exit, TaskError> {
        self.process.wait().await
    }

    /// Ends standard input once what the client wrote has been read.
    pub(crate) fn close_stdin(&self) {
        self.process.switch.close_stdin();
    }

    pub(super) fn keep_slot(&self, slot: SlotLease) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(slot);
    }

    /// Frees the slot, as the guest does not run the program any more.
    pub(super) fn free_slot(&self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    #[cfg(test)]
    pub(super) fn has_slot(&self) -> bool {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.is_some()
    }

    /// Gives the exec up: the guest's report of the exit is not awaited any more.
    pub(super) fn abandon(&self) {
        self.abandoned.send_replace(true);
    }

    pub(super) async fn abandoned(&self) {
        // `wait_for` fails only without a sender, and the exec holds the sender.
        let _ = self
            .abandoned
            .subscribe()
            .wait_for(|given_up| *given_up)
            .await;
    }
}

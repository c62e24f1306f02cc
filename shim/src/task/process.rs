//! A process as containerd knows it, init or an exec: its state, its streams, its terminal.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;
use wasmvm_protocol::agent::containerd::events::task::TaskExit;
use wasmvm_protocol::inspect::{Inspect, Node, Value};

use super::fatal::FatalSignal;
use super::{Exit, IllegalMove, Move, State, Task, TaskError};
use crate::agent::TerminalSize;
use crate::stdio::{Pumps, StdioNames, StdioSwitch, StreamsView};

/// The facts about a process that State, Pids and Connect report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The VMM's pid for init; 4194304 plus the guest's pid for an exec, 0 before the exec has started.
    pub pid: u32,
    pub state: State,
    pub stdio: StdioNames,
    /// Whether the streams are a terminal's.
    pub terminal: bool,
}

/// A process at one moment, for diagnostics.
#[derive(Debug)]
pub(super) struct ProcessView {
    name: String,
    pid: u32,
    state: State,
    terminal: bool,
    /// `None` when no stream is open.
    streams: Option<StreamsView>,
}

/// Streams that are not there, in words.
const CLOSED: &str = "no stream is open";

/// The request that deletes a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The caller deletes the process, which was in this state before.
    Ours(State),
    /// Another request has deleted the process, which ended with this exit.
    Done(Exit),
}

/// Init or an exec: state, streams, terminal, and the signal that is to end the program.
#[derive(Debug)]
pub(super) struct Process {
    /// The name in messages, as in "task a" or "exec b of task a".
    name: String,
    pub stdio: StdioNames,
    pub terminal: bool,
    /// Begins and ends the streams.
    pub switch: StdioSwitch,
    /// The signal that is to end the program, once a request has asked for one.
    pub fatal: FatalSignal,
    state: watch::Sender<State>,
    /// Whether no stream is open: the process's part of the VM has no more output.
    drained: watch::Sender<bool>,
    /// A terminal's size that has not been sent to the guest yet.
    size: Mutex<Option<TerminalSize>>,
}

impl Process {
    pub(super) fn new(name: String, stdio: StdioNames, terminal: bool, state: State) -> Self {
        Self {
            name,
            stdio,
            terminal,
            switch: StdioSwitch::default(),
            fatal: FatalSignal::default(),
            state: watch::Sender::new(state),
            drained: watch::Sender::new(true),
            size: Mutex::default(),
        }
    }

    /// The name in messages, as in "task a" or "exec b of task a".
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Makes a move that no event reports; returns the new state.
    pub(super) fn transition(&self, asked: Move) -> Result<State, IllegalMove> {
        self.transition_and_publish(asked, |_| ())
    }

    /// Makes a move and calls `tell` before anybody can see the new state, so that events keep the order of
    /// the moves. The only place where the state changes.
    pub(super) fn transition_and_publish(
        &self,
        asked: Move,
        tell: impl FnOnce(State),
    ) -> Result<State, IllegalMove> {
        let mut outcome = Err(self.state());
        self.state.send_if_modified(|state| {
            let after = state.after(asked);
            outcome = after.ok_or(*state);
            if let Some(after) = after {
                *state = after;
                tell(after);
            }
            after.is_some()
        });
        match outcome {
            Ok(state) => {
                tracing::debug!(process = self.name, state = state.word(), "moved");
                Ok(state)
            }
            Err(state) => Err(self.illegal(state, asked)),
        }
    }

    pub(super) fn illegal(&self, state: State, asked: Move) -> IllegalMove {
        let name = self.name.clone();
        IllegalMove { name, state, asked }
    }

    /// Waits for a state; the sender lives as long as the process, so the wait cannot fail.
    pub(super) async fn reaches(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut states = self.state.subscribe();
        let reached = states.wait_for(wanted).await.map(|state| *state);
        reached.unwrap_or_else(|_| self.state())
    }

    /// Waits for the exit; a process that is deleted without having run has an exit as well.
    pub(super) async fn wait(&self) -> Result<Exit, TaskError> {
        let state = self.reaches(|state| state.exit().is_some()).await;
        state
            .exit()
            .ok_or_else(|| TaskError::Unborn(self.name.clone()))
    }

    /// Begins a `Delete`; while another one is on its way, waits for its end first.
    pub(super) async fn claim_delete(&self) -> Result<Claim, IllegalMove> {
        loop {
            let state = self.state();
            match state {
                State::Deleting(_) => {
                    self.reaches(|state| !matches!(state, State::Deleting(_)))
                        .await;
                }
                State::Deleted(exit) => return Ok(Claim::Done(exit)),
                _ => {
                    self.transition(Move::Delete(never_ran()))?;
                    return Ok(Claim::Ours(state));
                }
            }
        }
    }

    /// Marks the streams as open, until [`Process::set_drained`].
    pub(super) fn set_flowing(&self) {
        self.drained.send_replace(false);
    }

    pub(super) fn set_drained(&self) {
        self.drained.send_replace(true);
    }

    /// Waits until no stream is open.
    pub(super) async fn drained(&self) {
        // `wait_for` fails only without a sender, and the process holds the sender.
        let _ = self.drained.subscribe().wait_for(|drained| *drained).await;
    }

    /// Waits until the output of the program, which has exited, is read, within the bounds of [`Pumps::drain`].
    pub(super) async fn finish_output(&self, pumps: &mut Pumps) {
        if !pumps.drain().await {
            let name = self.name();
            tracing::warn!(name, "the client did not read all output in time");
        }
    }

    /// State, pid and streams for diagnostics.
    pub(super) fn view(&self, pid: u32) -> ProcessView {
        ProcessView {
            name: self.name.clone(),
            pid,
            state: self.state(),
            terminal: self.terminal,
            streams: (!*self.drained.borrow()).then(|| self.switch.view()),
        }
    }

    /// Keeps a terminal's size until it can be sent to the guest.
    pub(super) fn keep_size(&self, size: TerminalSize) {
        *self.size() = Some(size);
    }

    /// Takes the size that waits to be sent to the guest, if any.
    pub(super) fn take_size(&self) -> Option<TerminalSize> {
        self.size().take()
    }

    /// The size is one value, and so whole after every statement.
    fn size(&self) -> MutexGuard<'_, Option<TerminalSize>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prints a process as in "task web is running; pid 4711; no stream is open".
impl fmt::Display for ProcessView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pid, .. } = self;
        write!(f, "{name} is {}; pid {pid}; ", self.state.word())?;
        match &self.streams {
            Some(streams) => streams.fmt(f),
            None => f.write_str(CLOSED),
        }
    }
}

impl Inspect for ProcessView {
    fn inspect(&self) -> Node {
        let streams = self.streams.as_ref().map(Inspect::inspect);
        let mut node = Node::new()
            .with("pid", self.pid)
            .with("state", self.state.word())
            .with("streams", streams.map_or(Value::from(CLOSED), Value::from))
            .with("terminal", self.terminal);
        if let Some(exit) = self.state.exit() {
            node.set("exit_status", exit.status);
        }
        node
    }
}

/// The event of an exit; `id` is the task's for init.
pub(super) fn exit_event(task: &Task, id: &str, pid: u32, exit: Exit) -> TaskExit {
    TaskExit {
        container_id: task.order.id.clone(),
        id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(Timestamp::from(exit.at)),
        ..Default::default()
    }
}

/// The exit of a program that never ran: status 0, now.
pub(super) fn never_ran() -> Exit {
    Exit::now(0)
}

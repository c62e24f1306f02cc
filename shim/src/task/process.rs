//! One process as containerd knows it: init, or an exec. Its state, its streams, its terminal.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::fatal::FatalSignal;
use super::{Exit, IllegalMove, Move, Size, State, TaskError};
use crate::stdio::{StdioNames, StdioSwitch};

/// What containerd is told of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The VMM's for init; 4194304 and the guest's pid for an exec, 0 before it has started.
    pub pid: u32,
    /// Where it is.
    pub state: State,
    /// Its streams.
    pub stdio: StdioNames,
    /// Whether they are a terminal.
    pub terminal: bool,
}

/// Who deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller, from this state on.
    Ours(State),
    /// Another request has done so.
    Done(Exit),
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// As in "task a" or "exec b of task a".
    name: String,
    pub stdio: StdioNames,
    pub terminal: bool,
    /// Begins and ends the streams.
    pub switch: StdioSwitch,
    /// What ends it, once it is asked for.
    pub fatal: FatalSignal,
    state: watch::Sender<State>,
    /// No stream is open; its part of the VM has no more to say.
    drained: watch::Sender<bool>,
    /// A terminal's size that the guest has not been told yet.
    size: Mutex<Option<Size>>,
}

impl Process {
    pub fn new(name: String, stdio: StdioNames, terminal: bool, state: State) -> Self {
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

    /// For sentences.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Changes the state.
    pub fn make(&self, asked: Move) -> Result<State, IllegalMove> {
        self.make_telling(asked, |_| ())
    }

    /// Changes the state and tells of it before anybody can see it: so events keep the order of what
    /// they are about. The only place where the state changes.
    pub fn make_telling(
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

    pub fn illegal(&self, state: State, asked: Move) -> IllegalMove {
        let name = self.name.clone();
        IllegalMove { name, state, asked }
    }

    /// Waits for a state; the sender lives as long as the process, so the wait cannot fail.
    pub async fn reaches(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut states = self.state.subscribe();
        let reached = states.wait_for(wanted).await.map(|state| *state);
        reached.unwrap_or_else(|_| self.state())
    }

    /// Waits for the end of the program, or of what might have become one.
    pub async fn wait(&self) -> Result<Exit, TaskError> {
        let state = self.reaches(|state| state.exit().is_some()).await;
        state
            .exit()
            .ok_or_else(|| TaskError::Unborn(self.name.clone()))
    }

    /// Begins a `Delete`, unless another one is on its way: then its end is waited for.
    pub async fn claim_delete(&self) -> Result<Claim, IllegalMove> {
        loop {
            let state = self.state();
            match state {
                State::Deleting(_) => {
                    self.reaches(|state| !matches!(state, State::Deleting(_)))
                        .await;
                }
                State::Deleted(exit) => return Ok(Claim::Done(exit)),
                _ => {
                    self.make(Move::Delete(never_ran()))?;
                    return Ok(Claim::Ours(state));
                }
            }
        }
    }

    /// Streams are open from here on, until [`Process::set_drained`].
    pub fn set_flowing(&self) {
        self.drained.send_replace(false);
    }

    pub fn set_drained(&self) {
        self.drained.send_replace(true);
    }

    /// Waits until no stream is open.
    pub async fn drained(&self) {
        // Fails only when the sender is gone, and the sender is ours.
        let _ = self.drained.subscribe().wait_for(|drained| *drained).await;
    }

    /// Where it is, in one sentence for the log.
    pub fn words(&self, pid: u32) -> String {
        let (name, state) = (&self.name, self.state().word());
        let streams = if *self.drained.borrow() {
            "no stream is open".to_owned()
        } else {
            self.switch.words()
        };
        format!("{name} is {state}; pid {pid}; {streams}")
    }

    /// Keeps a terminal's size until the guest can be told.
    pub fn keep_size(&self, size: Size) {
        *self.size() = Some(size);
    }

    /// The size to tell the guest, if any.
    pub fn take_size(&self) -> Option<Size> {
        self.size().take()
    }

    /// One value: whole after every statement.
    fn size(&self) -> MutexGuard<'_, Option<Size>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a program that never began.
pub fn never_ran() -> Exit {
    Exit {
        status: 0,
        at: SystemTime::now(),
    }
}

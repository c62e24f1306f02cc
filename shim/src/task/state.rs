//! The states of a process and every move between them: of a task's init, and of each exec.
//!
//! ```text
//!             CreateFailed
//!  Creating ───────────────────────────────────────────┐
//!     │ Created        Delete                           │
//!     ▼       ┌───────────────────────┐                 │
//!  Created ───┤                       │                 │
//!   │  ▲   └──┼── Exit ─────────┐     │                 │
//!   │  │ StartFailed            │     │                 │
//!   ▼  │      │                 ▼     ▼                 ▼
//!  Starting ──┼─ NeverRan ──► Stopped ──► Deleting ──► Deleted
//!     │ Started               ▲  ▲ Delete  │   DeleteDone
//!     ▼       │               │  └─────────┘
//!  Running ───┴─ Exit ────────┘   DeleteFailed
//! ```
//!
//! An exec begins as `Created`, when containerd registers the exec; its program is loaded during
//! `Starting`, so a program that cannot be loaded fails there (`NeverRan`). Init's program is loaded during
//! `Creating`. The watcher holds back an exit that is seen while `Start` is on its way until the process
//! has left `Starting`, so that containerd hears of the start first.

use std::time::SystemTime;

use crate::error::{Coded, ErrorCode};

/// The exit of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit status, 0 to 255; 128+n when ended by signal n.
    pub status: u32,
    /// Time of the exit by the host's clock.
    pub at: SystemTime,
}

impl Exit {
    /// An exit that happens now.
    pub(crate) fn now(status: u32) -> Self {
        let at = SystemTime::now();
        Self { status, at }
    }
}

/// The state of a process, as in the diagram above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Init only: the VM boots; containerd knows nothing of the task yet.
    Creating,
    /// The process waits for `Start`.
    Created,
    /// `Start` is on its way: the agent is asked to start the program, and before to load that of an exec.
    Starting,
    /// The agent has started the program.
    Running,
    /// The program has exited; its output may still be on its way.
    Stopped(Exit),
    /// `Delete` is on its way: output, VM and files are being brought to their end.
    Deleting(Exit),
    /// Nothing of the process is left, after `Delete` or a failed `Create`.
    Deleted(Exit),
}

/// An event that moves a process from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// The program is loaded.
    Created,
    /// `Create` failed: the program will never be loaded.
    CreateFailed(Exit),
    /// containerd wants the program to run.
    Start,
    /// The agent has started the program.
    Started,
    /// `Start` of init failed; the watcher finds out whether the program has exited.
    StartFailed,
    /// `Start` of an exec failed or was given up: the program does not run, and never will.
    NeverRan(Exit),
    /// The program has exited.
    Exit(Exit),
    /// containerd wants the process deleted; the exit counts only for a program that never ran.
    Delete(Exit),
    /// All that belongs to the process has been removed.
    DeleteDone,
    /// Something could not be removed; `Delete` may come again.
    DeleteFailed,
}

/// A move that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {}; {}", self.state.word(), self.hint())]
pub(crate) struct IllegalMove {
    /// The process, as in "task a" or "exec b of task a".
    pub name: String,
    /// The state that does not allow the move.
    pub state: State,
    /// The move that was asked for.
    pub asked: Move,
}

impl Coded for IllegalMove {
    fn code(&self) -> ErrorCode {
        match self.state {
            State::Deleted(_) => ErrorCode::NotFound,
            _ => ErrorCode::FailedPrecondition,
        }
    }
}

impl IllegalMove {
    fn hint(&self) -> &'static str {
        match self.asked {
            Move::Start => "only what is created can be started, and once",
            Move::Delete(_) => "kill it and wait for its end before it is deleted",
            _ => "this cannot happen now",
        }
    }
}

impl State {
    /// The state after a move; `None` when it is not allowed.
    #[must_use]
    pub(crate) fn after(self, asked: Move) -> Option<Self> {
        match (self, asked) {
            (Self::Creating, Move::Created) => Some(Self::Created),
            (Self::Creating, Move::CreateFailed(exit)) => Some(Self::Deleted(exit)),
            (Self::Created, Move::Start) => Some(Self::Starting),
            (Self::Created, Move::Delete(exit)) => Some(Self::Deleting(exit)),
            (Self::Starting, Move::Started) => Some(Self::Running),
            (Self::Starting, Move::StartFailed) => Some(Self::Created),
            (Self::Starting, Move::NeverRan(exit))
            | (Self::Created | Self::Running, Move::Exit(exit)) => Some(Self::Stopped(exit)),
            (Self::Stopped(exit), Move::Delete(_)) => Some(Self::Deleting(exit)),
            (Self::Deleting(exit), Move::DeleteDone) => Some(Self::Deleted(exit)),
            (Self::Deleting(exit), Move::DeleteFailed) => Some(Self::Stopped(exit)),
            _ => None,
        }
    }

    /// The program's exit, once there is one.
    #[must_use]
    pub(crate) const fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) | Self::Deleting(exit) | Self::Deleted(exit) => Some(exit),
            Self::Creating | Self::Created | Self::Starting | Self::Running => None,
        }
    }

    /// Whether the process has begun to start and has not ended.
    #[must_use]
    pub(crate) const fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }

    /// The state in messages, to stand behind "is".
    #[must_use]
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
            Self::Deleting(_) => "being deleted",
            Self::Deleted(_) => "deleted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exit(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn any_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            Just(Move::Created),
            any::<u8>().prop_map(|status| Move::CreateFailed(exit(status.into()))),
            Just(Move::Start),
            Just(Move::Started),
            Just(Move::StartFailed),
            any::<u8>().prop_map(|status| Move::NeverRan(exit(status.into()))),
            any::<u8>().prop_map(|status| Move::Exit(exit(status.into()))),
            Just(Move::Delete(exit(0))),
            Just(Move::DeleteDone),
            Just(Move::DeleteFailed),
        ]
    }

    /// What containerd may rely on, said without naming states: a few flags that only ever rise.
    #[derive(Default)]
    struct Model {
        created: bool,
        starting: bool,
        started: bool,
        exit: Option<Exit>,
        deleting: bool,
        gone: bool,
    }

    impl Model {
        /// Whether the move is allowed; takes it when it is.
        fn take(&mut self, asked: Move) -> bool {
            let ended = self.exit.is_some();
            let idle = !self.starting && !self.deleting && !self.gone;
            let allowed = match asked {
                Move::Created | Move::CreateFailed(_) => !self.created && !self.gone,
                Move::Start => self.created && !self.started && !ended && idle,
                Move::Started | Move::StartFailed | Move::NeverRan(_) => self.starting,
                Move::Exit(_) => self.created && !ended && idle,
                Move::Delete(_) => self.created && idle && (ended || !self.started),
                Move::DeleteDone | Move::DeleteFailed => self.deleting,
            };
            if !allowed {
                return false;
            }
            match asked {
                Move::Created => self.created = true,
                Move::CreateFailed(exit) => (self.gone, self.exit) = (true, Some(exit)),
                Move::Start => self.starting = true,
                Move::Started => (self.starting, self.started) = (false, true),
                Move::StartFailed => self.starting = false,
                Move::NeverRan(exit) => (self.starting, self.exit) = (false, Some(exit)),
                Move::Exit(exit) => self.exit = Some(exit),
                Move::Delete(never_ran) => {
                    self.deleting = true;
                    self.exit.get_or_insert(never_ran);
                }
                Move::DeleteDone => (self.deleting, self.gone) = (false, true),
                Move::DeleteFailed => self.deleting = false,
            }
            true
        }
    }

    proptest! {
        #[test]
        fn the_machine_agrees_with_the_model(moves in proptest::collection::vec(any_move(), 0..40)) {
            let (mut state, mut model) = (State::Creating, Model::default());
            for asked in moves {
                let after = state.after(asked);
                prop_assert_eq!(after.is_some(), model.take(asked), "{:?} in {:?}", asked, state);
                let next = after.unwrap_or(state);
                // An exit, once known, never changes.
                if let Some(exit) = state.exit() {
                    prop_assert_eq!(next.exit(), Some(exit));
                }
                prop_assert_eq!(next.exit(), model.exit);
                prop_assert_eq!(matches!(next, State::Deleted(_)), model.gone);
                state = next;
            }
        }
    }

    #[test]
    fn an_illegal_move_says_what_to_do() {
        let illegal = |state, asked| IllegalMove {
            name: "task t1".into(),
            state,
            asked,
        };
        let delete = illegal(State::Running, Move::Delete(exit(0)));
        assert_eq!(
            delete.to_string(),
            "task t1 is running; kill it and wait for its end before it is deleted"
        );
        assert_eq!(delete.code(), ErrorCode::FailedPrecondition);
        let gone = illegal(State::Deleted(exit(0)), Move::Start);
        assert_eq!(gone.code(), ErrorCode::NotFound);
    }
}

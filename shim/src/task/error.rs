//! Why a request about a task failed.

use std::io;

use super::IllegalMove;
use crate::accounting::ChangeError;
use crate::agent::AgentError;
use crate::error::{Coded, ErrorCode, Refusal};
use crate::signals;
use crate::stdio::StdioError;

/// Why a request about a task failed. Processes are named as in "task a" or "exec b of task a".
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// The state of the process does not allow the request.
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// The program of the named process has exited.
    #[error("the program of {0} has finished")]
    Finished(String),
    /// `Create` of the named task is not done.
    #[error("{0} is being created")]
    Unborn(String),
    /// The named exec is registered, but has not been started.
    #[error("{0} has not been started")]
    NotStarted(String),
    /// Init of the named task does not run: there can be no exec, and no pause.
    #[error("the init process of {0} is not running; exec needs one that runs")]
    InitNotRunning(String),
    /// The VM of the named task does not run: nothing can be started, and there is nothing to pause.
    #[error("{0} is paused; resume it first")]
    Paused(String),
    /// `Resume` came for a task whose VM is not paused.
    #[error("{0} is not paused")]
    NotPaused(String),
    /// SIGSTOP came for a single exec, but the VM stops only as a whole.
    #[error("{0} cannot be stopped or continued alone; pause the task instead")]
    StopsAlone(String),
    /// The task has an exec of this id already.
    #[error("{0} exists already; delete it first")]
    Exists(String),
    /// The guest may still run the named exec, which was given up.
    #[error("the guest has not ended {0} yet, which was given up; use another exec id")]
    Lingers(String),
    /// The task has no exec of this id.
    #[error("task {task} has no process {exec}")]
    NoProcess {
        /// Id of the task, unique within its namespace.
        task: String,
        exec: String,
    },
    /// The task has as many execs as there may be at the same time.
    #[error("{name} has {execs_max} execs already, the most there can be; delete one first")]
    TooMany {
        /// The task, as in "task a".
        name: String,
        execs_max: usize,
    },
    /// The exec id is empty, or too long for a stream's header.
    #[error("the exec id has {bytes} bytes; allowed are 1 to {bytes_max}")]
    ExecId {
        /// Length of the id in the request.
        bytes: usize,
        /// The longest id that a stream's header carries.
        bytes_max: usize,
    },
    /// The named exec was killed before its program ran.
    #[error("{0} was killed before it ran")]
    Abandoned(String),
    /// The number is not a signal of Linux.
    #[error("signal {0} does not exist; Linux has 1 to {max}", max = signals::SIGNAL_MAX)]
    Signal(u32),
    /// The terminal is larger than `struct winsize` can say.
    #[error("a terminal of {width} columns and {height} rows is not possible; at most {max} of each are", max = u16::MAX)]
    Size {
        /// The width in the request, columns.
        width: u32,
        /// The height in the request, rows.
        height: u32,
    },
    /// A stream of the request cannot be opened.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The request to the agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The program of an exec cannot be found or mapped.
    #[error(transparent)]
    Program(Refusal),
    /// A poststart hook failed.
    #[error(transparent)]
    Hook(Refusal),
    /// The VM was not stopped, or not resumed.
    #[error("cannot {action} {name}")]
    Vm {
        /// The request: `pause` or `resume`.
        action: &'static str,
        name: String,
        source: Refusal,
    },
    /// The new limits cannot be held.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The answer to Stats cannot be encoded.
    #[error("cannot encode what the task has used")]
    Encode(#[source] protobuf::Error),
    /// A blocking step, on a thread of its own, did not finish.
    #[error("cannot finish a step on a thread of its own")]
    Thread(#[source] io::Error),
    /// The VM ended before `Start` was answered; holds the reason.
    #[error("the VM ended: {0}")]
    VmEnded(String),
    /// The host could not remove all that belongs to the task.
    #[error("cannot remove what is left of {name}")]
    Destroy {
        /// The task, as in "task a".
        name: String,
        source: Refusal,
    },
}

impl Coded for TaskError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Illegal(illegal) => illegal.code(),
            Self::Finished(_) | Self::Unborn(_) | Self::NoProcess { .. } => ErrorCode::NotFound,
            Self::NotStarted(_)
            | Self::InitNotRunning(_)
            | Self::Paused(_)
            | Self::NotPaused(_)
            | Self::StopsAlone(_)
            | Self::Lingers(_)
            | Self::Abandoned(_) => ErrorCode::FailedPrecondition,
            Self::Exists(_) => ErrorCode::AlreadyExists,
            Self::TooMany { .. } => ErrorCode::ResourceExhausted,
            Self::ExecId { .. } | Self::Signal(_) | Self::Size { .. } => ErrorCode::InvalidArgument,
            Self::Stdio(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::Change(error) => error.code(),
            Self::Encode(_) | Self::Thread(_) => ErrorCode::Internal,
            Self::VmEnded(_) => ErrorCode::Unavailable,
            Self::Program(source)
            | Self::Hook(source)
            | Self::Vm { source, .. }
            | Self::Destroy { source, .. } => source.code,
        }
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use protobuf::well_known_types::any::Any;

    use super::*;
    use crate::error::expect_codes;
    use crate::task::{Move, State};

    #[test]
    fn every_error_has_its_code() {
        let name = || "task a".to_owned();
        let broken = Any::parse_from_bytes(b"\xff").unwrap_err();
        let illegal = IllegalMove {
            name: name(),
            state: State::Running,
            asked: Move::Start,
        };
        expect_codes([
            (illegal.into(), ErrorCode::FailedPrecondition),
            (TaskError::Finished(name()), ErrorCode::NotFound),
            (TaskError::Unborn(name()), ErrorCode::NotFound),
            (
                TaskError::NoProcess {
                    task: "a".into(),
                    exec: "b".into(),
                },
                ErrorCode::NotFound,
            ),
            (TaskError::Exists(name()), ErrorCode::AlreadyExists),
            (
                TaskError::TooMany {
                    name: name(),
                    execs_max: 1,
                },
                ErrorCode::ResourceExhausted,
            ),
            (
                TaskError::ExecId {
                    bytes: 0,
                    bytes_max: 1,
                },
                ErrorCode::InvalidArgument,
            ),
            (TaskError::Signal(65), ErrorCode::InvalidArgument),
            (
                TaskError::Size {
                    width: 1 << 16,
                    height: 1,
                },
                ErrorCode::InvalidArgument,
            ),
            (TaskError::Encode(broken), ErrorCode::Internal),
            (
                TaskError::Thread(io::ErrorKind::Other.into()),
                ErrorCode::Internal,
            ),
            (TaskError::VmEnded("killed".into()), ErrorCode::Unavailable),
        ]);
        let unmet = [
            TaskError::NotStarted,
            TaskError::InitNotRunning,
            TaskError::Paused,
            TaskError::NotPaused,
            TaskError::StopsAlone,
            TaskError::Lingers,
            TaskError::Abandoned,
        ];
        expect_codes(unmet.map(|error| (error(name()), ErrorCode::FailedPrecondition)));
    }

    #[test]
    fn the_error_of_a_part_keeps_its_code() {
        for code in ErrorCode::ALL {
            let (name, source) = ("task a".to_owned(), Refusal::say(code, "no"));
            let vm = TaskError::Vm {
                action: "pause",
                name: name.clone(),
                source: source.clone(),
            };
            let connect = AgentError::Connect {
                port: 1,
                source: source.clone(),
            };
            expect_codes([
                (TaskError::Program(source.clone()), code),
                (TaskError::Hook(source.clone()), code),
                (vm, code),
                (connect.into(), code),
                (TaskError::Destroy { name, source }, code),
            ]);
        }
        let scheme = StdioError::Scheme {
            stream: "stdin",
            uri: "a".into(),
        };
        expect_codes([
            (TaskError::from(scheme), ErrorCode::InvalidArgument),
            (ChangeError::Ended.into(), ErrorCode::FailedPrecondition),
        ]);
    }
}

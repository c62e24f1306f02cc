//! Why a request about a task failed.

use std::io;

use super::{IllegalMove, signals};
use crate::agent::AgentError;
use crate::error::{ErrorCode, Refusal};
use crate::meter::ChangeError;
use crate::stdio::StdioError;

/// Why a request about a task failed. Processes are named as in "task a" or "exec b of task a".
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Not in this state.
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// Nothing to send a signal to.
    #[error("the program of {0} has finished")]
    Finished(String),
    /// Still in `Create`.
    #[error("{0} is being created")]
    Unborn(String),
    /// Only registered.
    #[error("{0} has not been started")]
    NotStarted(String),
    /// An exec needs an init.
    #[error("the init process of {0} is not running; exec needs one that runs")]
    InitNotRunning(String),
    /// A paused VM starts nothing.
    #[error("{0} is paused; resume it first")]
    Paused(String),
    /// Only what is paused can go on.
    #[error("{0} is not paused")]
    NotPaused(String),
    /// The VM stops as a whole.
    #[error("{0} cannot be stopped or continued alone; pause the task instead")]
    StopsAlone(String),
    /// Of this id.
    #[error("{0} exists already; delete it first")]
    Exists(String),
    /// Given up, and perhaps still there.
    #[error("the guest has not ended {0} yet, which was given up; use another exec id")]
    Lingers(String),
    /// No such exec.
    #[error("task {task} has no process {exec}")]
    NoProcess {
        /// The task.
        task: String,
        /// The exec's id.
        exec: String,
    },
    /// Too many execs at the same time.
    #[error("{name} has {execs_max} execs already, the most there can be; delete one first")]
    TooMany {
        /// The task.
        name: String,
        /// The limit.
        execs_max: usize,
    },
    /// An exec id that cannot be carried.
    #[error("the exec id has {bytes} bytes; allowed are 1 to {bytes_max}")]
    ExecId {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Ended before it began.
    #[error("{0} was killed before it ran")]
    Abandoned(String),
    /// Not a signal of Linux.
    #[error("signal {0} does not exist; Linux has 1 to {max}", max = signals::SIGNAL_MAX)]
    Signal(u32),
    /// No terminal is that large.
    #[error("a terminal of {width} columns and {height} rows is not possible; at most {max} of each are", max = u16::MAX)]
    Size {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// A FIFO of the request.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The agent refused or was silent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The program of an exec.
    #[error(transparent)]
    Program(Refusal),
    /// A poststart hook failed.
    #[error(transparent)]
    Hook(Refusal),
    /// The VMM did not stop, or did not go on.
    #[error("cannot {action} {name}")]
    Vm {
        /// `pause` or `resume`.
        action: &'static str,
        /// The task.
        name: String,
        /// What the VMM says.
        source: Refusal,
    },
    /// Limits that cannot be held.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// What the task has used cannot be encoded.
    #[error("cannot encode what the task has used")]
    Encode(#[source] protobuf::Error),
    /// A step on a thread of its own.
    #[error("cannot finish a step on a thread of its own")]
    Thread(#[source] io::Error),
    /// The VM ended first.
    #[error("the VM ended: {0}")]
    VmEnded(String),
    /// The host could not remove what belongs to the task.
    #[error("cannot remove what is left of {name}")]
    Destroy {
        /// The task.
        name: String,
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

impl From<TaskError> for Refusal {
    fn from(error: TaskError) -> Self {
        Self::new(error.code(), &error)
    }
}

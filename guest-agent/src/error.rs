//! Why a request failed, and the one mapping to ttrpc's status codes.

use ttrpc::Code;
use wasmvm_protocol::agent::SENTENCE_BYTES_MAX;
use wasmvm_protocol::error_chain;

use crate::request::RequestError;
use crate::spawn::{ProcessEnd, SpawnError};
use crate::streams::ClaimError;
use crate::tree::GuestError;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The request itself is wrong.
    #[error("invalid request")]
    Request(#[from] RequestError),
    /// A stream that the request names never came.
    #[error("stdio")]
    Stream(#[from] ClaimError),
    /// The program cannot be run; the sentence is the runner's.
    #[error("{0}")]
    Refused(String),
    /// Loading failed on our side; the sentence is the child's.
    #[error("{0}")]
    Failed(String),
    /// The child ended without a word.
    #[error("the {mode} process ended before it could answer ({how})")]
    Silent {
        /// The kind of child: the first argument that it was started with.
        mode: &'static str,
        /// The end: the signal or the code.
        how: String,
    },
    /// No child came about.
    #[error("process")]
    Spawn(#[from] SpawnError),
    /// The guest could not be set up for the task.
    #[error("guest set-up")]
    Guest(#[from] GuestError),
    /// A number that is no signal.
    #[error("there is no signal {0}")]
    Signal(u32),
    /// An id that is in use.
    #[error("{0} exists already")]
    Exists(String),
    /// An id that no instance has, or one whose process is gone.
    #[error("{0} not found")]
    NotFound(String),
    /// The process has ended.
    #[error("process of {0} has ended already")]
    Ended(String),
    /// The state forbids it.
    #[error("cannot {action} {id}: it is {phase}")]
    Phase {
        /// The action that was asked for.
        action: &'static str,
        /// The instance, as it stands in sentences.
        id: String,
        /// The instance's phase, as it stands in sentences.
        phase: &'static str,
    },
    /// A call that the system refused; the first field is what it was for.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
}

impl AgentError {
    /// The error for a child that ended so and without a report.
    #[must_use]
    pub fn silent(mode: &'static str, end: ProcessEnd) -> Self {
        let how = if end.is_kill() {
            "killed, most likely for want of memory".to_owned()
        } else {
            format!("status {}", end.status())
        };
        Self::Silent { mode, how }
    }

    fn code(&self) -> Code {
        match self {
            Self::Request(_) | Self::Refused(_) | Self::Signal(_) => Code::INVALID_ARGUMENT,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::NotFound(_) | Self::Ended(_) => Code::NOT_FOUND,
            Self::Phase { .. } => Code::FAILED_PRECONDITION,
            Self::Stream(_)
            | Self::Failed(_)
            | Self::Silent { .. }
            | Self::Spawn(_)
            | Self::Guest(_)
            | Self::System(..) => Code::INTERNAL,
        }
    }
}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        let text = match &error {
            // "invalid request: args is empty" and "stdio: …" only say more with their cause.
            AgentError::Request(cause) => cause.to_string(),
            other => error_chain(other),
        };
        Self::RpcStatus(ttrpc::get_status(error.code(), bounded(text)))
    }
}

/// Cuts an answer to the longest that the shim takes.
fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SENTENCE_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;

    fn status(error: AgentError) -> (i32, String) {
        match ttrpc::Error::from(error) {
            ttrpc::Error::RpcStatus(status) => (status.code() as i32, status.message),
            other => panic!("not a status: {other:?}"),
        }
    }

    #[test]
    fn a_long_sentence_is_cut_between_two_characters() {
        let (_, text) = status(AgentError::Refused("é".repeat(SENTENCE_BYTES_MAX)));
        assert_eq!(text, "é".repeat(SENTENCE_BYTES_MAX / 2));
        let (_, text) = status(AgentError::Refused(format!("a{text}")));
        assert_eq!(text.len(), SENTENCE_BYTES_MAX - 1);
    }

    #[test]
    fn each_error_has_its_code_and_sentence() {
        let cases = [
            (
                AgentError::Refused("no _start".into()),
                Code::INVALID_ARGUMENT,
                "no _start",
            ),
            (
                AgentError::Exists("task web".into()),
                Code::ALREADY_EXISTS,
                "task web exists already",
            ),
            (
                AgentError::NotFound("task web".into()),
                Code::NOT_FOUND,
                "task web not found",
            ),
            (
                AgentError::Ended("task web".into()),
                Code::NOT_FOUND,
                "process of task web has ended already",
            ),
            (
                AgentError::Phase {
                    action: "start",
                    id: "task web".into(),
                    phase: "running",
                },
                Code::FAILED_PRECONDITION,
                "cannot start task web: it is running",
            ),
            (
                AgentError::System("read the report", std::io::ErrorKind::NotFound.into()),
                Code::INTERNAL,
                "cannot read the report: entity not found",
            ),
        ];
        for (error, code, text) in cases {
            assert_eq!(status(error), (code as i32, text.to_owned()));
        }
    }

    #[test]
    fn each_error_that_carries_another_has_its_code() {
        let spawn = SpawnError::Exec {
            mode: "runner",
            source: std::io::ErrorKind::NotFound.into(),
        };
        let guest = tree::doing("set the clock")(std::io::Error::from_raw_os_error(1));
        for (error, code) in [
            (RequestError::NoArgs.into(), Code::INVALID_ARGUMENT),
            (AgentError::Signal(65), Code::INVALID_ARGUMENT),
            (ClaimError::Missing { token: 1 }.into(), Code::INTERNAL),
            (AgentError::Failed("no memory".into()), Code::INTERNAL),
            (
                AgentError::silent("runner", ProcessEnd::KILLED),
                Code::INTERNAL,
            ),
            (spawn.into(), Code::INTERNAL),
            (guest.into(), Code::INTERNAL),
        ] {
            assert_eq!(status(error).0, code as i32);
        }
    }
}

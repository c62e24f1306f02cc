//! Errors of requests to the agent, and the meaning of a guest's status codes.
//!
//! containerd acts on status codes: NotFound means "gone already", Unimplemented "ask in another dialect",
//! AlreadyExists "done already". A guest must not say any of that of the host. [`meaning`] alone reduces a
//! guest's code to a [`Meaning`], by the method that was asked.

use std::time::Duration;

use ttrpc::Code;
use wasmvm_protocol::agent::UNFIT;
use wasmvm_protocol::stream::StreamHeaderError;

use crate::error::{Coded, ErrorCode, Refusal, printable};

/// A method of the agent's Task service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the methods of containerd's Task service")]
pub(crate) enum Method {
    Create,
    Exec,
    Start,
    Kill,
    Wait,
    Delete,
    ResizePty,
    Update,
    Stats,
    Pids,
}

impl Method {
    /// The method's name, for messages.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Exec => "Exec",
            Self::Start => "Start",
            Self::Kill => "Kill",
            Self::Wait => "Wait",
            Self::Delete => "Delete",
            Self::ResizePty => "ResizePty",
            Self::Update => "Update",
            Self::Stats => "Stats",
            Self::Pids => "Pids",
        }
    }
}

/// The meaning of a guest's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The program that was to be loaded is not a program, or asks for something that is not offered.
    Invalid,
    /// The program that was to be loaded, or a file it needs, is not there.
    Missing,
    /// By the guest's report the program has ended. Only the exit itself shows that the program has.
    Ended,
    /// Something else, which concerns the guest alone.
    Failed,
}

/// Reduces a guest's status code to its meaning for the method that was asked.
fn meaning(method: Method, code: Code) -> Meaning {
    match (method, code) {
        // A program that never ran, and never will: the sentence is for the author of the image.
        (Method::Create | Method::Exec, Code::INVALID_ARGUMENT) => Meaning::Invalid,
        (Method::Create | Method::Exec, Code::NOT_FOUND) => Meaning::Missing,
        (Method::Kill | Method::Wait | Method::ResizePty, Code::NOT_FOUND) => Meaning::Ended,
        _ => Meaning::Failed,
    }
}

/// Why a request to the agent failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The guest refused; the sentence is the guest's.
    #[error("{}", refusal(*.method, .sentence))]
    Refused {
        /// The method that was refused.
        method: Method,
        /// The guest's status code, reduced.
        meaning: Meaning,
        /// The guest's sentence, printable and bounded.
        sentence: String,
    },
    /// The guest did not answer in time.
    #[error("the guest did not answer {request} within {within:?}")]
    Late {
        /// The name of the method, or "a connection".
        request: &'static str,
        /// The deadline, in the guest's time.
        within: Duration,
    },
    /// The connection ended, by the guest's doing or because the guest broke a bound.
    #[error("the connection to the guest broke during {}", .method.name())]
    Gone {
        /// The method that was under way.
        method: Method,
        source: ttrpc::Error,
    },
    /// The connection could not be opened.
    #[error("cannot connect to port {port} of the guest")]
    Connect {
        /// The guest's vsock port.
        port: u32,
        source: Refusal,
    },
    /// The header of a stream cannot be encoded.
    #[error("cannot open a stream of the task")]
    Stream(#[from] StreamHeaderError),
    /// A stream broke before it was used.
    #[error("cannot open a stream of the task")]
    StreamBroken(#[source] std::io::Error),
    /// A message cannot be encoded.
    #[error("cannot encode a message for the guest")]
    Encode(#[source] protobuf::Error),
}

/// The sentence about a program is for its author; any other one is about the guest.
fn refusal(method: Method, sentence: &str) -> String {
    match method {
        Method::Create | Method::Exec => sentence.to_owned(),
        method => printable(&format!("the guest refused {}: {sentence}", method.name())),
    }
}

impl AgentError {
    /// The error for an answer that is no success.
    #[must_use]
    pub(crate) fn of(method: Method, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Refused {
                method,
                meaning: meaning(method, status.code()),
                // The sentence goes to the log as well.
                sentence: printable(&status.message),
            },
            source => Self::Gone { method, source },
        }
    }

    /// Whether the artifact is at fault, made for another processor or by another version. Only to be
    /// believed before tenant code has run.
    #[must_use]
    pub(crate) fn is_unfit(&self) -> bool {
        matches!(self, Self::Refused { sentence, .. } if sentence.starts_with(UNFIT))
    }

    /// Whether the guest is at fault beyond one request: without an answer, or without a connection.
    #[must_use]
    pub(crate) fn is_silence(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// Whether the guest says that the program has ended.
    #[must_use]
    pub(crate) fn says_ended(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                meaning: Meaning::Ended,
                ..
            }
        )
    }

    /// Whether the guest says that it has not loaded the program of an exec.
    #[must_use]
    pub(crate) fn refuses_exec(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                method: Method::Exec,
                ..
            }
        )
    }
}

impl Coded for AgentError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { meaning, .. } => match meaning {
                Meaning::Invalid => ErrorCode::InvalidArgument,
                Meaning::Missing => ErrorCode::NotFound,
                Meaning::Ended => ErrorCode::FailedPrecondition,
                Meaning::Failed => ErrorCode::Internal,
            },
            Self::Late { .. } => ErrorCode::DeadlineExceeded,
            Self::Gone { .. } | Self::StreamBroken(_) | Self::Encode(_) => ErrorCode::Internal,
            Self::Connect { source, .. } => source.code,
            Self::Stream(_) => ErrorCode::InvalidArgument,
        }
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use protobuf::well_known_types::any::Any;

    use super::*;
    use crate::error::{SENTENCE_BYTES_MAX, expect_codes};

    const METHODS: [Method; 10] = [
        Method::Create,
        Method::Exec,
        Method::Start,
        Method::Kill,
        Method::Wait,
        Method::Delete,
        Method::ResizePty,
        Method::Update,
        Method::Stats,
        Method::Pids,
    ];

    fn refused(method: Method, code: Code, sentence: &str) -> AgentError {
        AgentError::of(
            method,
            ttrpc::Error::RpcStatus(ttrpc::get_status(code, sentence)),
        )
    }

    #[test]
    fn no_code_of_a_guest_says_anything_of_the_host() {
        use ErrorCode::{FailedPrecondition, Internal, InvalidArgument, NotFound};
        for method in METHODS {
            for number in 1..=16 {
                let code: Code = protobuf::Enum::from_i32(number).unwrap();
                let told = refused(method, code, "no").code();
                let expected = match (method, code) {
                    (Method::Create | Method::Exec, Code::INVALID_ARGUMENT) => InvalidArgument,
                    (Method::Create | Method::Exec, Code::NOT_FOUND) => NotFound,
                    (Method::Kill | Method::Wait | Method::ResizePty, Code::NOT_FOUND) => {
                        FailedPrecondition
                    }
                    _ => Internal,
                };
                assert_eq!(told, expected, "{method:?} answered with {code:?}");
            }
        }
    }

    #[test]
    fn every_failure_has_its_code() {
        assert!(!refused(Method::Start, Code::NOT_FOUND, "no").is_silence());
        let gone = AgentError::of(Method::Start, ttrpc::Error::RemoteClosed);
        assert_eq!(gone.code(), ErrorCode::Internal);
        assert!(gone.is_silence());
        let late = AgentError::Late {
            request: "Kill",
            within: Duration::from_secs(1),
        };
        assert_eq!(late.to_string(), "the guest did not answer Kill within 1s");
        let broken = Any::parse_from_bytes(b"\xff").unwrap_err();
        let source = Refusal::say(ErrorCode::Unavailable, "no");
        let header = StreamHeaderError::Magic([0; 4]);
        expect_codes([
            (late, ErrorCode::DeadlineExceeded),
            (
                AgentError::Connect { port: 1, source },
                ErrorCode::Unavailable,
            ),
            (header.into(), ErrorCode::InvalidArgument),
            (
                AgentError::StreamBroken(std::io::ErrorKind::BrokenPipe.into()),
                ErrorCode::Internal,
            ),
            (AgentError::Encode(broken), ErrorCode::Internal),
        ]);
    }

    #[test]
    fn what_a_guest_answers_is_one_bounded_line() {
        let long = "a\n".repeat(SENTENCE_BYTES_MAX);
        let said = refused(Method::Create, Code::INTERNAL, &long).to_string();
        assert!(said.starts_with("a a ") && said.len() <= SENTENCE_BYTES_MAX);
        let said = refused(Method::Kill, Code::INTERNAL, &long).to_string();
        assert!(said.starts_with("the guest refused Kill: a a "));
        assert!(said.len() <= SENTENCE_BYTES_MAX);
    }
}

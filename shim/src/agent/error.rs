//! Why the agent did not do what it was asked.

use std::time::Duration;

use wasmvm_protocol::agent::UNFIT;
use wasmvm_protocol::stream::StreamHeaderError;

use crate::error::{ErrorCode, Refusal};

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It said no; the sentence is its own.
    #[error("{sentence}")]
    Refused {
        /// Its status code.
        code: ErrorCode,
        /// Its sentence.
        sentence: String,
    },
    /// It said nothing.
    #[error("the guest did not answer {request} within {within:?}")]
    Late {
        /// The request.
        request: &'static str,
        /// Its deadline.
        within: Duration,
    },
    /// Its connection ended.
    #[error("the connection to the guest broke during {request}")]
    Gone {
        /// The request.
        request: &'static str,
        /// What ttrpc says.
        source: ttrpc::Error,
    },
    /// No connection came about.
    #[error("cannot connect to port {port} of the guest")]
    Connect {
        /// The vsock port.
        port: u32,
        /// What the VMM says.
        source: Refusal,
    },
    /// A stream cannot be named.
    #[error("cannot open a stream of the task")]
    Stream(#[from] StreamHeaderError),
    /// A stream broke before it was used.
    #[error("cannot open a stream of the task")]
    StreamBroken(#[source] std::io::Error),
    /// A message cannot be encoded.
    #[error("cannot encode a message for the guest")]
    Encode(#[source] protobuf::Error),
}

impl AgentError {
    /// How containerd is answered.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Late { .. } => ErrorCode::DeadlineExceeded,
            Self::Gone { .. } | Self::StreamBroken(_) => ErrorCode::Unavailable,
            Self::Connect { source, .. } => source.code,
            Self::Stream(_) => ErrorCode::InvalidArgument,
            Self::Encode(_) => ErrorCode::Internal,
        }
    }

    /// Whether the artifact is at fault: it was made for another processor, or by another version. Only to be
    /// believed before tenant code has run.
    #[must_use]
    pub fn is_unfit(&self) -> bool {
        matches!(self, Self::Refused { sentence, .. } if sentence.starts_with(UNFIT))
    }

    /// Whether the guest is at fault beyond one request: silent, or gone.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

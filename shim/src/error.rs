//! The one place where an error becomes an answer to containerd.
//!
//! Every module has its own `<Noun>Error`, which is [`Coded`]. Inside the shim errors travel typed; at the edge
//! ([`Refusal`]) the chain is printed once and the code is mapped to the status that containerd, `ctr` and the
//! kubelet act on.

use std::error::Error;

use ttrpc::Code;
pub(crate) use wasmvm_protocol::error_chain as chain;

/// Longest sentence sent to containerd, bytes: it goes into events, logs and terminals.
pub(crate) const SENTENCE_BYTES_MAX: usize = 4096;

/// The kind of refusal that an error is. The status codes are gRPC's; containerd acts on them by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request, the bundle or the image is wrong: the same request will never succeed.
    InvalidArgument,
    /// The task, the process, the program or a file of the image does not exist.
    NotFound,
    /// A task of this id exists.
    AlreadyExists,
    /// Not in this state of the task, or not on this host: something else has to be done first.
    FailedPrecondition,
    /// A limit of ours or of the task is used up.
    ResourceExhausted,
    /// Not a feature of this version.
    Unimplemented,
    /// The VM or the agent is gone.
    Unavailable,
    /// The guest did not answer in time.
    DeadlineExceeded,
    /// The shim or the host failed; nobody's request is to blame.
    Internal,
}

impl ErrorCode {
    /// Every code, for tests.
    pub const ALL: [Self; 9] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::ResourceExhausted,
        Self::Unimplemented,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// The status on the wire.
    #[must_use]
    pub const fn ttrpc(self) -> Code {
        match self {
            Self::InvalidArgument => Code::INVALID_ARGUMENT,
            Self::NotFound => Code::NOT_FOUND,
            Self::AlreadyExists => Code::ALREADY_EXISTS,
            Self::FailedPrecondition => Code::FAILED_PRECONDITION,
            Self::ResourceExhausted => Code::RESOURCE_EXHAUSTED,
            Self::Unimplemented => Code::UNIMPLEMENTED,
            Self::Unavailable => Code::UNAVAILABLE,
            Self::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
            Self::Internal => Code::INTERNAL,
        }
    }

    /// The code of a status; what has no name here is `Internal`.
    #[cfg(test)]
    pub fn from_ttrpc(code: Code) -> Self {
        Self::ALL
            .into_iter()
            .find(|known| known.ttrpc() == code)
            .unwrap_or(Self::Internal)
    }
}

/// An error that knows its status code.
pub(crate) trait Coded: Error {
    /// containerd's status code for this error.
    fn code(&self) -> ErrorCode;
}

/// An answer to containerd: a code and one sentence that names the field, its value and what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// The status code, on which containerd acts.
    pub code: ErrorCode,
    /// The sentence that `ctr` prints: one line of at most 4096 bytes.
    pub sentence: String,
}

impl Refusal {
    /// Prints the chain of `error` into one sentence: `outer: inner: innermost`.
    #[must_use]
    pub fn new(code: ErrorCode, error: &dyn Error) -> Self {
        Self::say(code, chain(error))
    }

    /// A sentence that is no error of a module.
    #[must_use]
    pub fn say(code: ErrorCode, sentence: impl Into<String>) -> Self {
        Self {
            code,
            sentence: printable(&sentence.into()),
        }
    }
}

impl<E: Coded> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::new(error.code(), &error)
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        Self::RpcStatus(ttrpc::get_status(refusal.code.ttrpc(), refusal.sentence))
    }
}

/// Makes one line of at most [`SENTENCE_BYTES_MAX`] of a text, parts of which may come from the guest or from an
/// image.
#[must_use]
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(SENTENCE_BYTES_MAX));
    for c in text.chars() {
        let c = match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '?',
            c => c,
        };
        if line.len() + c.len_utf8() > SENTENCE_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line
}

/// The end of a sentence about a VM's end: the guest's last console output, empty when there is none.
#[must_use]
pub(crate) fn console(tail: &str) -> String {
    match tail.trim() {
        "" => String::new(),
        tail => format!("; its console ends with: {}", printable(tail)),
    }
}

/// Each of these errors has its code.
#[cfg(test)]
pub(crate) fn expect_codes<E: Coded, const N: usize>(table: [(E, ErrorCode); N]) {
    for (error, code) in table {
        assert_eq!(error.code(), code, "{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open /etc/passwd")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_code_has_grpcs_number() {
        let numbers = ErrorCode::ALL.map(|code| code.ttrpc() as i32);
        assert_eq!(numbers, [3, 5, 6, 9, 8, 12, 14, 4, 13]);
    }

    #[test]
    fn every_code_survives_the_wire() {
        for code in ErrorCode::ALL {
            let ttrpc::Error::RpcStatus(status) = Refusal::say(code, "no").into() else {
                panic!("not a status");
            };
            assert_eq!(ErrorCode::from_ttrpc(status.code()), code);
            assert_eq!(status.message(), "no");
        }
        assert_eq!(
            ErrorCode::from_ttrpc(Code::DATA_LOSS),
            ErrorCode::Internal,
            "a code without a name here"
        );
    }

    #[test]
    fn the_chain_is_printed_once() {
        let error = Outer(std::io::Error::other("no such thing"));
        let refusal = Refusal::new(ErrorCode::NotFound, &error);
        assert_eq!(refusal.sentence, "cannot open /etc/passwd: no such thing");
    }

    #[test]
    fn what_a_guest_says_stays_one_bounded_line() {
        let long = format!("a\nb\x1b[31m{}", "é".repeat(SENTENCE_BYTES_MAX));
        let refusal = Refusal::say(ErrorCode::Internal, long);
        assert!(refusal.sentence.starts_with("a b?[31mé"));
        assert!(refusal.sentence.len() <= SENTENCE_BYTES_MAX);
    }
}

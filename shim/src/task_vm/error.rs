//! Errors of a task's VM that belong to no other module.

use std::io;

use crate::error::{Coded, ErrorCode, chain};
use crate::program::ProgramError;

/// Why a task's VM cannot be made, used or removed, where no other module says why.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskVmError {
    /// The program of an exec cannot be run.
    #[error(
        "{}; exec can run WebAssembly modules of the container's file system",
        chain(.0)
    )]
    Exec(ProgramError),
    /// A step on the host failed that does not depend on the request.
    #[error("cannot {action}")]
    Step {
        /// Step that failed, as in "read the VMM's start time".
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Coded for TaskVmError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Exec(err) => err.code(),
            Self::Step { .. } => ErrorCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        let source = || io::Error::from(io::ErrorKind::NotFound);
        let step = TaskVmError::Step {
            action: "read the VMM's start time",
            source: source(),
        };
        expect_codes([(step, ErrorCode::Internal)]);
    }
}

//! Errors of the search for a program and of its copy.

use std::io;
use std::path::PathBuf;

use crate::error::{Coded, ErrorCode};

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// No file lies at any path that `args[0]` may mean.
    #[error("program {name:?} not found in the rootfs; looked for {looked}")]
    NotFound {
        /// `args[0]` of the process, as the spec has it.
        name: String,
        /// The paths that were tried, inside the tree, separated by commas.
        looked: String,
    },
    /// The program's file exists but cannot be opened or read.
    #[error("program {}: cannot be read", path.display())]
    Read {
        /// Path of the program's file inside the tree.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The file is not a WebAssembly program.
    #[error("program {} {what}", path.display())]
    NotWasm {
        /// Path of the program's file inside the tree.
        path: PathBuf,
        /// The end of the sentence about the file, as in "is a directory".
        what: String,
    },
    /// `args[0]` names a function of a component, which has no functions that are called by name.
    #[error(
        "program {} is a component, which is entered by its export wasi:cli/run; `#{function}` names a function of a \
         core module: leave it out", path.display()
    )]
    FunctionOfComponent {
        /// Path of the program's file inside the tree.
        path: PathBuf,
        /// Name of the function: the part of `args[0]` behind the `#`.
        function: String,
    },
    /// The program is larger than what can be compiled.
    #[error("program {} has {bytes} bytes; at most {bytes_max} are supported", path.display())]
    TooLarge {
        /// Path of the program's file inside the tree.
        path: PathBuf,
        /// Size of the program's file, bytes.
        bytes: u64,
        /// Largest size that is supported, bytes.
        bytes_max: u64,
    },
    /// The copy in memory cannot be made.
    #[error("cannot keep a copy of the program {}", path.display())]
    Copy {
        /// Path of the program's file inside the tree.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Coded for ProgramError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Read { .. }
            | Self::NotWasm { .. }
            | Self::FunctionOfComponent { .. }
            | Self::TooLarge { .. } => ErrorCode::InvalidArgument,
            Self::Copy { .. } => ErrorCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        let path = || PathBuf::from("/a");
        let source = || io::ErrorKind::NotFound.into();
        let absent = ProgramError::NotFound {
            name: "a".into(),
            looked: "/a".into(),
        };
        let copy = ProgramError::Copy {
            path: path(),
            source: source(),
        };
        expect_codes([(absent, ErrorCode::NotFound), (copy, ErrorCode::Internal)]);
        let invalid = [
            ProgramError::Read {
                path: path(),
                source: source(),
            },
            ProgramError::NotWasm {
                path: path(),
                what: "is a directory".into(),
            },
            ProgramError::FunctionOfComponent {
                path: path(),
                function: "f".into(),
            },
            ProgramError::TooLarge {
                path: path(),
                bytes: 2,
                bytes_max: 1,
            },
        ];
        expect_codes(invalid.map(|error| (error, ErrorCode::InvalidArgument)));
    }
}

//! Why a program cannot be run.

use std::io;
use std::path::PathBuf;

use crate::error::{Coded, ErrorCode};

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// No such file.
    #[error("program {name:?} not found in the rootfs; looked for {looked}")]
    NotFound {
        /// `args[0]`.
        name: String,
        /// The paths that were tried.
        looked: String,
    },
    /// It is there but cannot be opened or read.
    #[error("program {}: cannot be read", path.display())]
    Read {
        /// Inside the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that is not a WebAssembly program.
    #[error("program {} {what}", path.display())]
    NotWasm {
        /// Inside the tree.
        path: PathBuf,
        /// As in "is a directory".
        what: String,
    },
    /// A component has no functions that are called by name.
    #[error(
        "program {} is a component, which is entered by its export wasi:cli/run; `#{function}` names a function of a \
         core module: leave it out", path.display()
    )]
    FunctionOfComponent {
        /// Inside the tree.
        path: PathBuf,
        /// Behind the `#` of `args[0]`.
        function: String,
    },
    /// Larger than what can be compiled.
    #[error("program {} has {bytes} bytes; at most {bytes_max} are supported", path.display())]
    TooLarge {
        /// Inside the tree.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The copy in memory cannot be made.
    #[error("cannot keep a copy of the program {}", path.display())]
    Copy {
        /// Inside the tree.
        path: PathBuf,
        /// Why.
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

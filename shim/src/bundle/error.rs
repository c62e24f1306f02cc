//! Why a bundle was refused.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorCode;

/// The bundle's document, in sentences.
pub(super) const CONFIG: &str = "config.json";
/// An exec's, likewise.
pub(super) const EXEC: &str = "the spec of the exec";
/// An Update's resources, likewise.
pub(super) const UPDATE: &str = "the update";

/// Why a bundle was refused. Each sentence names the field and its value.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// `config.json` cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Larger than any honest one.
    #[error("{}: more than {bytes_max} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// Not JSON.
    #[error("{}: not JSON", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// JSON, but not an object.
    #[error("{}: not an OCI runtime spec, which is an object", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
    },
    /// A field whose type is not what the specification says.
    #[error("{document}: {field} is not as the OCI specification has it")]
    Type {
        /// What is read.
        document: &'static str,
        /// Its path in the document.
        field: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A field that cannot be honoured and must not be ignored.
    #[error("{document}: {field} = {value} is refused: {reason}")]
    Refused {
        /// What is read.
        document: &'static str,
        /// Its path in the document.
        field: String,
        /// Its value, shortened.
        value: String,
        /// One sentence.
        reason: String,
    },
    /// A field without which there is no task.
    #[error("{document}: {field} is missing: {reason}")]
    Missing {
        /// What is read.
        document: &'static str,
        /// Its path in the document.
        field: &'static str,
        /// One sentence.
        reason: &'static str,
    },
    /// The root directory is not there.
    #[error("config.json: root.path = {}: no such directory", path.display())]
    Rootfs {
        /// The path, made absolute.
        path: PathBuf,
        /// Why it cannot be used.
        #[source]
        source: io::Error,
    },
}

impl BundleError {
    /// The same, said of an exec's spec.
    pub(super) fn of_exec(self) -> Self {
        self.of(EXEC)
    }

    /// The same, said of another document.
    pub(super) fn of(mut self, name: &'static str) -> Self {
        match &mut self {
            Self::Type { document, .. }
            | Self::Refused { document, .. }
            | Self::Missing { document, .. } => *document = name,
            _ => {}
        }
        self
    }

    /// containerd's status code for it. Never `Unimplemented`: containerd 2 would try again with an
    /// older dialect.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Read { source, .. } | Self::Rootfs { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::InvalidArgument,
            },
            Self::TooLong { .. }
            | Self::Parse { .. }
            | Self::Shape { .. }
            | Self::Type { .. }
            | Self::Refused { .. }
            | Self::Missing { .. } => ErrorCode::InvalidArgument,
        }
    }
}

//! Why a bundle was refused.

use std::io;
use std::path::PathBuf;

use crate::error::{Coded, ErrorCode};

/// Name of the bundle's document in errors.
pub(super) const CONFIG: &str = "config.json";
/// Name of an exec's spec in errors.
pub(super) const EXEC: &str = "the spec of the exec";
/// Name of an Update's resources in errors.
pub(super) const UPDATE: &str = "the update";

/// Why a bundle was refused. Each sentence names the field and its value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// `config.json` cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of opening or reading the file.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any honest one.
    #[error("{}: more than {bytes_max} bytes", path.display())]
    TooLong {
        /// Path of the file.
        path: PathBuf,
        /// Largest size that is read, bytes.
        bytes_max: u64,
    },
    /// The document is not JSON.
    #[error("{}: not JSON", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser, with the place.
        #[source]
        source: serde_json::Error,
    },
    /// The document is JSON, but not an object.
    #[error("{}: not an OCI runtime spec, which is an object", path.display())]
    Shape {
        /// Path of the file.
        path: PathBuf,
    },
    /// A field whose type is not the specification's.
    #[error("{document}: {field} is not as the OCI specification has it")]
    Type {
        /// Name of the document.
        document: &'static str,
        /// Path of the field in the document.
        field: String,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// A field that cannot be honoured and must not be ignored.
    #[error("{document}: {field} = {value} is refused: {reason}")]
    Refused {
        /// Name of the document.
        document: &'static str,
        /// Path of the field in the document.
        field: String,
        /// Value of the field, shortened.
        value: String,
        /// Reason and remedy, in one sentence.
        reason: String,
    },
    /// A field without which there is no task.
    #[error("{document}: {field} is missing: {reason}")]
    Missing {
        /// Name of the document.
        document: &'static str,
        /// Path of the field in the document.
        field: &'static str,
        /// Reason why it is needed, in one sentence.
        reason: &'static str,
    },
    /// The root directory does not exist, or is not a directory.
    #[error("config.json: root.path = {}: no such directory", path.display())]
    Rootfs {
        /// The path, made absolute.
        path: PathBuf,
        /// Error of looking at the directory.
        #[source]
        source: io::Error,
    },
}

impl BundleError {
    /// The error, with an exec's spec as its document.
    pub(super) fn of_exec(self) -> Self {
        self.of(EXEC)
    }

    /// The error, with another document.
    pub(super) fn of(mut self, name: &'static str) -> Self {
        match &mut self {
            Self::Type { document, .. }
            | Self::Refused { document, .. }
            | Self::Missing { document, .. } => *document = name,
            _ => {}
        }
        self
    }
}

impl Coded for BundleError {
    // Never `Unimplemented`: containerd 2 would try again with an older dialect.
    fn code(&self) -> ErrorCode {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        let json = || serde_json::from_str::<u8>("x").unwrap_err();
        let field = || "root".to_owned();
        for (kind, code) in [
            (io::ErrorKind::NotFound, ErrorCode::NotFound),
            (io::ErrorKind::PermissionDenied, ErrorCode::InvalidArgument),
        ] {
            let read = BundleError::Read {
                path: "/b".into(),
                source: kind.into(),
            };
            let rootfs = BundleError::Rootfs {
                path: "/b".into(),
                source: kind.into(),
            };
            expect_codes([(read, code), (rootfs, code)]);
        }
        let refused = [
            BundleError::TooLong {
                path: "/b".into(),
                bytes_max: 1,
            },
            BundleError::Parse {
                path: "/b".into(),
                source: json(),
            },
            BundleError::Shape { path: "/b".into() },
            BundleError::Type {
                document: CONFIG,
                field: field(),
                source: json(),
            },
            BundleError::Refused {
                document: CONFIG,
                field: field(),
                value: "1".into(),
                reason: "no".into(),
            },
            BundleError::Missing {
                document: CONFIG,
                field: "root",
                reason: "no",
            },
        ];
        expect_codes(refused.map(|error| (error, ErrorCode::InvalidArgument)));
    }
}

//! Why a tree could not be put together.

use std::io;
use std::path::PathBuf;

use crate::error::{Coded, ErrorCode};

/// Why a tree could not be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// A step failed that does not depend on the request.
    #[error("cannot {step}")]
    Host {
        /// Step that failed, as in "make all mounts private".
        step: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A rootfs mount of the request failed.
    #[error("rootfs mount {index} ({kind} of {mounted}) failed on {}", target.display())]
    Rootfs {
        /// Place of the mount in the request, from 0.
        index: usize,
        /// Type of the mount.
        kind: String,
        /// Source of the mount.
        mounted: String,
        /// Directory that was mounted on.
        target: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A rootfs mount of the request is of a kind that is not supported.
    #[error("rootfs mount {index} ({kind} of {mounted}) is refused: {reason}")]
    RootfsRefused {
        /// Place of the mount in the request, from 0.
        index: usize,
        /// Type of the mount.
        kind: String,
        /// Source of the mount.
        mounted: String,
        /// Reason for the refusal, in one sentence.
        reason: String,
    },
    /// A bind mount's source cannot be used.
    #[error("mount on {}: cannot use the source {}", destination.display(), path.display())]
    Source {
        /// Place of the mount in the tree.
        destination: PathBuf,
        /// Path of the source on the host.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A bind mount's source lies on a file system that is an interface to the host's kernel.
    #[error(
        "mount on {}: the source {} lies on {kind}, which is the host kernel's own interface; \
         such mounts are refused",
        destination.display(), path.display()
    )]
    KernelFiles {
        /// Place of the mount in the tree.
        destination: PathBuf,
        /// Path of the source, or of a mount below it.
        path: PathBuf,
        /// Type of the file system.
        kind: String,
    },
    /// The place for a mount cannot be opened or made inside the tree.
    #[error("mount on {}: cannot make the mount point", destination.display())]
    Point {
        /// Place of the mount in the tree.
        destination: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The working directory does not exist and cannot be made, or is not a directory.
    #[error("process.cwd = {path:?}: cannot make the working directory")]
    WorkingDirectory {
        /// Path, as the spec has it.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The source is a directory and the place a file, or the reverse.
    #[error(
        "mount on {}: the source is {what}, the place inside the rootfs is not",
        destination.display()
    )]
    Mismatch {
        /// Place of the mount in the tree.
        destination: PathBuf,
        /// Kind of the source: "a directory" or "a file".
        what: &'static str,
    },
    /// The mount itself failed.
    #[error("mount on {}: cannot mount", destination.display())]
    Attach {
        /// Place of the mount in the tree.
        destination: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A tmpfs's driver refuses an option.
    #[error("mount on {}: tmpfs refuses {option}", destination.display())]
    TmpfsOption {
        /// Place of the mount in the tree.
        destination: PathBuf,
        /// Option of the tmpfs, as `key=value`.
        option: String,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Coded for TreeError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Host { .. } | Self::Attach { .. } => ErrorCode::Internal,
            Self::Rootfs { source, .. }
            | Self::Source { source, .. }
            | Self::WorkingDirectory { source, .. }
            | Self::Point { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorCode::NotFound,
                io::ErrorKind::ReadOnlyFilesystem => ErrorCode::FailedPrecondition,
                _ => ErrorCode::InvalidArgument,
            },
            Self::RootfsRefused { .. }
            | Self::KernelFiles { .. }
            | Self::Mismatch { .. }
            | Self::TmpfsOption { .. } => ErrorCode::InvalidArgument,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        let host = TreeError::Host {
            step: "make all mounts private",
            source: io::ErrorKind::NotFound.into(),
        };
        let attach = TreeError::Attach {
            destination: "/a".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        expect_codes([(host, ErrorCode::Internal), (attach, ErrorCode::Internal)]);
        let refused = TreeError::RootfsRefused {
            index: 0,
            kind: "nfs".into(),
            mounted: "a".into(),
            reason: "no".into(),
        };
        let kernel = TreeError::KernelFiles {
            destination: "/a".into(),
            path: "/proc".into(),
            kind: "proc".into(),
        };
        let mismatch = TreeError::Mismatch {
            destination: "/a".into(),
            what: "a file",
        };
        let option = TreeError::TmpfsOption {
            destination: "/a".into(),
            option: "size=x".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        expect_codes(
            [refused, kernel, mismatch, option].map(|error| (error, ErrorCode::InvalidArgument)),
        );
    }

    #[test]
    fn what_the_request_names_has_the_code_of_what_is_wrong_with_it() {
        for (kind, code) in [
            (io::ErrorKind::NotFound, ErrorCode::NotFound),
            (
                io::ErrorKind::ReadOnlyFilesystem,
                ErrorCode::FailedPrecondition,
            ),
            (io::ErrorKind::PermissionDenied, ErrorCode::InvalidArgument),
        ] {
            let rootfs = TreeError::Rootfs {
                index: 0,
                kind: "bind".into(),
                mounted: "/r".into(),
                target: "/t".into(),
                source: kind.into(),
            };
            let source = TreeError::Source {
                destination: "/a".into(),
                path: "/s".into(),
                source: kind.into(),
            };
            let point = TreeError::Point {
                destination: "/a".into(),
                source: kind.into(),
            };
            let cwd = TreeError::WorkingDirectory {
                path: "/w".into(),
                source: kind.into(),
            };
            expect_codes([rootfs, source, point, cwd].map(|error| (error, code)));
        }
    }
}

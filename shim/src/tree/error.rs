//! Why a tree could not be put together.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorCode;

/// Why a tree could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A step that has nothing to do with the request.
    #[error("cannot {step}")]
    Host {
        /// As in "make all mounts private".
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's list of mounts is not as documented in proc(5).
    #[error("/proc/thread-self/mountinfo: cannot read the line {line:?}")]
    Mountinfo {
        /// The line.
        line: String,
    },
    /// One of the request's rootfs mounts failed.
    #[error("rootfs mount {index} ({kind} of {mounted}) failed on {}", target.display())]
    Rootfs {
        /// Its place in the request.
        index: usize,
        /// Its type.
        kind: String,
        /// Its source.
        mounted: String,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One of the request's rootfs mounts is of a kind that is not supported.
    #[error("rootfs mount {index} ({kind} of {mounted}) is refused: {reason}")]
    RootfsRefused {
        /// Its place in the request.
        index: usize,
        /// Its type.
        kind: String,
        /// Its source.
        mounted: String,
        /// One sentence.
        reason: String,
    },
    /// A bind mount's source cannot be used.
    #[error("mount on {}: cannot use the source {}", destination.display(), path.display())]
    Source {
        /// Where it should have gone.
        destination: PathBuf,
        /// The source.
        path: PathBuf,
        /// Why.
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
        /// Where it should have gone.
        destination: PathBuf,
        /// The source, or what was found below it.
        path: PathBuf,
        /// The file system.
        kind: String,
    },
    /// The place for a mount cannot be made inside the tree.
    #[error("mount on {}: cannot make the mount point", destination.display())]
    Point {
        /// Where.
        destination: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The working directory is not there and cannot be made, or is none.
    #[error("process.cwd = {path:?}: cannot make the working directory")]
    WorkingDirectory {
        /// As the spec says.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory on a file, or a file on a directory.
    #[error(
        "mount on {}: the source is {what}, the place inside the rootfs is not",
        destination.display()
    )]
    Mismatch {
        /// Where.
        destination: PathBuf,
        /// "a directory" or "a file".
        what: &'static str,
    },
    /// The mount itself failed.
    #[error("mount on {}: cannot mount", destination.display())]
    Attach {
        /// Where.
        destination: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An option of a tmpfs that its driver refuses.
    #[error("mount on {}: tmpfs refuses {option}", destination.display())]
    TmpfsOption {
        /// Where.
        destination: PathBuf,
        /// `key=value`.
        option: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TreeError {
    /// containerd's status code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Host { .. } | Self::Mountinfo { .. } | Self::Attach { .. } => ErrorCode::Internal,
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

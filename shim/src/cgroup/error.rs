//! Why a cgroup could not be made, read or removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::ErrorCode;
use crate::journal::JournalError;

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not a cgroup, or a host that has none.
    #[error("{} is part of no cgroup hierarchy; wasmvm needs cgroup v2 or v1, mounted", path.display())]
    Version {
        /// What was looked at.
        path: PathBuf,
    },
    /// A path of the spec that cannot be one.
    #[error("config.json: linux.cgroupsPath = {given:?} is refused: {reason}")]
    Path {
        /// As given.
        given: String,
        /// One sentence.
        reason: &'static str,
    },
    /// Another task holds it, or it has processes or cgroups of its own.
    #[error(
        "the cgroup {} is in use: another task holds it, or it has processes or cgroups; give the task one that \
         is empty, or none",
        path.display()
    )]
    InUse {
        /// The cgroup.
        path: PathBuf,
    },
    /// It could not be emptied.
    #[error("the cgroup {} has processes {} ms after they were killed", path.display(), waited.as_millis())]
    Busy {
        /// The cgroup.
        path: PathBuf,
        /// How long it was waited.
        waited: Duration,
    },
    /// A directory or file of it.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a value of the spec.
    #[error("{field} = {value} is refused by the kernel ({})", file.display())]
    Refused {
        /// The field of the spec.
        field: String,
        /// As written.
        value: String,
        /// The file it was written to.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Less memory than the VM has touched, and cannot give back.
    #[error(
        "linux.resources.memory.limit = {limit_bytes} is refused: the VM holds {used_bytes} bytes that \
         the kernel cannot reclaim; a lower limit would end it"
    )]
    MemoryHeld {
        /// What was wanted, bytes.
        limit_bytes: u64,
        /// What is used, bytes.
        used_bytes: u64,
    },
    /// Memory and swap together that do not fit the present memory limit.
    #[error("linux.resources.memory.swap = {both} is refused: {reason}")]
    Swap {
        /// As given, bytes.
        both: u64,
        /// One sentence.
        reason: &'static str,
    },
    /// A file of ours cannot be written.
    #[error("cannot write {value:?} to {}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// The value.
        value: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What is about to be done cannot be written down, and so is not done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A limit whose controller is not there.
    #[error(
        "{field} = {value} cannot be held: the controller {controller} is not available in {}",
        path.display()
    )]
    Controller {
        /// The field of the spec.
        field: String,
        /// Its value.
        value: String,
        /// The controller.
        controller: String,
        /// The cgroup.
        path: PathBuf,
    },
}

impl CgroupError {
    pub(super) fn at(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            action,
            source,
        }
    }

    /// containerd's status code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Version { .. }
            | Self::InUse { .. }
            | Self::Controller { .. }
            | Self::MemoryHeld { .. } => ErrorCode::FailedPrecondition,
            Self::Path { .. } | Self::Swap { .. } => ErrorCode::InvalidArgument,
            Self::Refused { source, .. } => match source.raw_os_error() {
                // Not a value of the file, or none that its parent allows.
                Some(
                    libc::EINVAL | libc::ERANGE | libc::EACCES | libc::EOVERFLOW | libc::E2BIG,
                ) => ErrorCode::InvalidArgument,
                Some(libc::EBUSY | libc::ENOSPC) => ErrorCode::FailedPrecondition,
                _ => ErrorCode::Internal,
            },
            Self::Journal(err) => err.code(),
            Self::Busy { .. } | Self::File { .. } | Self::Write { .. } => ErrorCode::Internal,
        }
    }
}

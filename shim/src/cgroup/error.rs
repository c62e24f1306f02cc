//! Why a cgroup could not be made, read or removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Coded, ErrorCode};
use crate::journal::JournalError;

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The path is part of no hierarchy, or the host has none.
    #[error("{} is part of no cgroup hierarchy; wasmvm needs cgroup v2 or v1, mounted", path.display())]
    Version {
        /// Path that was looked at.
        path: PathBuf,
    },
    /// The spec's path is refused.
    #[error("config.json: linux.cgroupsPath = {given:?} is refused: {reason}")]
    Path {
        /// Path as the spec has it.
        given: String,
        /// Reason for the refusal, in one sentence.
        reason: &'static str,
    },
    /// Another task holds the cgroup, or it has processes or cgroups of its own.
    #[error(
        "the cgroup {} is in use: another task holds it, or it has processes or cgroups; give the task one that \
         is empty, or none",
        path.display()
    )]
    InUse {
        /// Path of the cgroup.
        path: PathBuf,
    },
    /// The cgroup has processes after they were killed.
    #[error("the cgroup {} has processes {} ms after they were killed", path.display(), waited.as_millis())]
    Busy {
        /// Path of the cgroup.
        path: PathBuf,
        /// How long their exits were waited for.
        waited: Duration,
    },
    /// A directory or file of the cgroup cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Action that failed, as a verb.
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a value of the spec.
    #[error("{field} = {value} is refused by the kernel ({})", file.display())]
    Refused {
        /// Path of the field in the spec.
        field: String,
        /// Value, as written to the file.
        value: String,
        /// Path of the file that the value was written to.
        file: PathBuf,
        /// Error of the write.
        #[source]
        source: io::Error,
    },
    /// The limit is below what the VM has touched, and cannot give back.
    #[error(
        "linux.resources.memory.limit = {limit_bytes} is refused: the VM holds {used_bytes} bytes that \
         the kernel cannot reclaim; a lower limit would end it"
    )]
    MemoryHeld {
        /// Limit in the request, bytes.
        limit_bytes: u64,
        /// Usage of the cgroup, bytes.
        used_bytes: u64,
    },
    /// Memory and swap together do not fit the present memory limit.
    #[error("linux.resources.memory.swap = {both} is refused: {reason}")]
    Swap {
        /// Memory and swap together in the request, bytes.
        both: u64,
        /// Reason for the refusal, in one sentence.
        reason: &'static str,
    },
    /// A file of the cgroup cannot be written.
    #[error("cannot write {value:?} to {}", file.display())]
    Write {
        /// Path of the file.
        file: PathBuf,
        /// Value that was to be written.
        value: String,
        /// Error of the write.
        #[source]
        source: io::Error,
    },
    /// The change cannot be recorded in the journal, and so is not made.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A limit's controller is not available.
    #[error(
        "{field} = {value} cannot be held: the controller {controller} is not available in {}",
        path.display()
    )]
    Controller {
        /// Path of the field in the spec.
        field: String,
        /// Value of the field.
        value: String,
        /// Name of the controller.
        controller: String,
        /// Path of the cgroup.
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
}

impl Coded for CgroupError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Version { .. }
            | Self::InUse { .. }
            | Self::Controller { .. }
            | Self::MemoryHeld { .. } => ErrorCode::FailedPrecondition,
            Self::Path { .. } | Self::Swap { .. } => ErrorCode::InvalidArgument,
            Self::Refused { source, .. } => match source.raw_os_error() {
                // Not a value of the file, or none that the parent allows.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        let path = || PathBuf::from("/c");
        let source = || io::ErrorKind::NotFound.into();
        let unmet = [
            CgroupError::Version { path: path() },
            CgroupError::InUse { path: path() },
            CgroupError::MemoryHeld {
                limit_bytes: 1,
                used_bytes: 2,
            },
            CgroupError::Controller {
                field: "a".into(),
                value: "1".into(),
                controller: "cpu".into(),
                path: path(),
            },
        ];
        expect_codes(unmet.map(|error| (error, ErrorCode::FailedPrecondition)));
        expect_codes([
            (
                CgroupError::Path {
                    given: "..".into(),
                    reason: "no",
                },
                ErrorCode::InvalidArgument,
            ),
            (
                CgroupError::Swap {
                    both: 1,
                    reason: "no",
                },
                ErrorCode::InvalidArgument,
            ),
            (
                CgroupError::Busy {
                    path: path(),
                    waited: Duration::ZERO,
                },
                ErrorCode::Internal,
            ),
            (
                CgroupError::at(&path(), "open", source()),
                ErrorCode::Internal,
            ),
            (
                CgroupError::Write {
                    file: path(),
                    value: "1".into(),
                    source: source(),
                },
                ErrorCode::Internal,
            ),
            (
                JournalError::Exists(path()).into(),
                ErrorCode::AlreadyExists,
            ),
        ]);
    }

    #[test]
    fn a_value_that_the_kernel_refuses_has_the_code_of_the_reason() {
        let refused = |errno| CgroupError::Refused {
            field: "a".into(),
            value: "1".into(),
            file: "/c/a".into(),
            source: io::Error::from_raw_os_error(errno),
        };
        for errno in [
            libc::EINVAL,
            libc::ERANGE,
            libc::EACCES,
            libc::EOVERFLOW,
            libc::E2BIG,
        ] {
            expect_codes([(refused(errno), ErrorCode::InvalidArgument)]);
        }
        expect_codes([
            (refused(libc::EBUSY), ErrorCode::FailedPrecondition),
            (refused(libc::ENOSPC), ErrorCode::FailedPrecondition),
            (refused(libc::EIO), ErrorCode::Internal),
        ]);
    }
}

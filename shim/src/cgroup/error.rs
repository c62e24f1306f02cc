//! Why a cgroup could not be made, read or removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::ErrorCode;

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has cgroup v1, or none.
    #[error(
        "{} is not cgroup v2; wasmvm needs the unified hierarchy: boot the host with \
         systemd.unified_cgroup_hierarchy=1",
        path.display()
    )]
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
    /// Processes live in it that are not ours.
    #[error("the cgroup {} belongs to somebody: it has processes or cgroups", path.display())]
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
    /// The kernel refused a value.
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
    /// A limit whose controller is not there.
    #[error(
        "{field} = {value} cannot be held: the controller {controller} is not available in {}",
        path.display()
    )]
    Controller {
        /// The field of the spec.
        field: &'static str,
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
            Self::Version { .. } | Self::InUse { .. } | Self::Controller { .. } => {
                ErrorCode::FailedPrecondition
            }
            Self::Path { .. } => ErrorCode::InvalidArgument,
            Self::Write { source, .. } => match source.kind() {
                io::ErrorKind::InvalidInput => ErrorCode::InvalidArgument,
                _ => ErrorCode::Internal,
            },
            Self::Busy { .. } | Self::File { .. } => ErrorCode::Internal,
        }
    }
}

//! Makes and attaches each tmpfs of the tree. A tmpfs's pages are charged to the process that writes them: the VMM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::point::{self, PointKind};
use super::{TreeError, bind};
use crate::bundle::{AccessTimes, TaskSpec, TmpfsOptions};

impl TmpfsOptions {
    /// Flags of the mount. The kernel keeps times of access in one of three ways (mount_setattr(2)).
    pub(super) fn attributes(&self) -> MountAttrFlags {
        let mut attributes = MountAttrFlags::empty();
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.no_exec);
        attributes.set(
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            self.no_directory_times,
        );
        attributes
            | match self.access_times {
                AccessTimes::Relative => MountAttrFlags::empty(),
                AccessTimes::Never => MountAttrFlags::MOUNT_ATTR_NOATIME,
                AccessTimes::Always => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            }
    }
}

/// The parameters with the task's mount label, if it has one.
pub(super) fn parameters(own: &[(&str, &str)], spec: &TaskSpec) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    own.iter().map(owned).chain(label(spec)).collect()
}

/// The parameter for `linux.mountLabel`, which labels every file of the file system.
pub(super) fn label(spec: &TaskSpec) -> Option<(String, String)> {
    let label = spec.labels.selinux_mount.clone()?;
    Some(("context".to_owned(), label))
}

/// Makes a tmpfs that is mounted nowhere yet.
pub(super) fn create(
    parameters: &[(String, String)],
    attributes: MountAttrFlags,
    destination: &Path,
) -> Result<OwnedFd, TreeError> {
    let failed = |errno| failed(destination, errno);
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    for (key, value) in parameters {
        let set = match value.as_str() {
            "" => rustix::mount::fsconfig_set_flag(&fs, key.as_str()),
            value => rustix::mount::fsconfig_set_string(&fs, key.as_str(), value),
        };
        set.map_err(|errno| TreeError::TmpfsOption {
            destination: destination.to_owned(),
            option: format!("{key}={value}"),
            source: errno.into(),
        })?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(failed)?;
    let harmless = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, harmless | attributes)
        .map_err(failed)
}

/// Mounts a new tmpfs on `destination`, which is made where it does not exist.
pub(super) fn attach(
    root: BorrowedFd<'_>,
    tmpfs: &OwnedFd,
    destination: &Path,
) -> Result<(), TreeError> {
    let point = point::ensure(root, destination, PointKind::Directory)?;
    bind::attach(tmpfs, point.as_fd()).map_err(|source| TreeError::Attach {
        destination: destination.to_owned(),
        source,
    })
}

/// The error of a mount on `destination`.
pub(super) fn failed(destination: &Path, errno: Errno) -> TreeError {
    TreeError::Attach {
        destination: destination.to_owned(),
        source: errno.into(),
    }
}

//! The whole tree, in order.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags};

use super::point::{self, PointKind};
use super::rootfs::RootfsMount;
use super::{TreeError, bind, rootfs};
use crate::bundle::{MountSource, TaskSpec, TmpfsOptions};
use crate::sys::mounts::{MountChange, change_mount};

/// A tree ready to become a VMM's root. The calling thread's working directory is its root.
#[derive(Debug)]
pub struct AssembledTree {
    /// Its root, which is a mount point (`O_PATH`).
    pub root: OwnedFd,
    /// Directories mounted into it that the guest can reach, in the spec's order.
    pub mounted_directories: Vec<PathBuf>,
}

/// Puts the tree of `spec` together, in the calling thread's mount namespace. The thread has done
/// `unshare(CLONE_FS | CLONE_NEWNS)` and nobody else is in that namespace.
///
/// # Errors
/// [`TreeError`]. What was mounted by then goes with the namespace.
pub fn assemble(
    spec: &TaskSpec,
    rootfs_mounts: &[RootfsMount],
) -> Result<AssembledTree, TreeError> {
    let host = |step| {
        move |errno: rustix::io::Errno| TreeError::Host {
            step,
            source: errno.into(),
        }
    };
    // First of all: nothing done here may reach the host, nothing done there may reach the tree.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(host("make all mounts private"))?;
    let root = rootfs::mount(rootfs_mounts, &spec.rootfs)?;
    let mut mounted_directories = Vec::new();
    if spec.guest_dev {
        point::ensure(root.as_fd(), Path::new("/dev"), PointKind::Directory)?;
    }
    for mount in &spec.mounts {
        let destination = mount.destination.as_path();
        let is_directory = match &mount.source {
            MountSource::Bind { path, recursive } => {
                bind::mount(root.as_fd(), path, *recursive, destination, mount.read_only)?
            }
            MountSource::Tmpfs(options) => {
                mount_tmpfs(root.as_fd(), options, destination, mount.read_only, spec)?;
                true
            }
        };
        if is_directory && !(spec.guest_dev && destination.starts_with("/dev")) {
            mounted_directories.push(destination.to_owned());
        }
    }
    if spec.rootfs_readonly {
        let change = MountChange {
            read_only: true,
            ..MountChange::default()
        };
        change_mount(&root, change).map_err(|source| TreeError::Host {
            step: "make the rootfs read-only",
            source,
        })?;
    }
    bind::drop_kernels(&root, Path::new("/"))?;
    rustix::process::fchdir(&root).map_err(host("enter the tree"))?;
    Ok(AssembledTree {
        root,
        mounted_directories,
    })
}

/// An empty tmpfs of the host. Its pages are charged to who writes them: the VMM.
fn mount_tmpfs(
    root: BorrowedFd<'_>,
    options: &TmpfsOptions,
    destination: &Path,
    read_only: bool,
    spec: &TaskSpec,
) -> Result<(), TreeError> {
    let failed = |errno: rustix::io::Errno| TreeError::Attach {
        destination: destination.to_owned(),
        source: errno.into(),
    };
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    let limit = spec
        .memory_bytes_max
        .map(|bytes| ("size".to_owned(), bytes.to_string()));
    let has_size = options
        .parameters
        .iter()
        .any(|(key, _)| key == "size" || key == "nr_blocks");
    for (key, value) in limit
        .iter()
        .filter(|_| !has_size)
        .chain(&options.parameters)
    {
        rustix::mount::fsconfig_set_string(&fs, key.as_str(), value.as_str()).map_err(|errno| {
            TreeError::TmpfsOption {
                destination: destination.to_owned(),
                option: format!("{key}={value}"),
                source: errno.into(),
            }
        })?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(failed)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.no_exec);
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let tmpfs = rustix::mount::fsmount(&fs, flags, attributes).map_err(failed)?;
    let point = point::ensure(root, destination, PointKind::Directory)?;
    bind::attach(&tmpfs, point.as_fd()).map_err(|source| TreeError::Attach {
        destination: destination.to_owned(),
        source,
    })
}

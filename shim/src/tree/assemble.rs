//! Assembles the whole tree, step by step.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::point::{self, PointKind};
use super::rootfs::RootfsMount;
use super::{TreeError, bind, dev, mask, rootfs, spec_tmpfs};
use crate::bundle::{MountSource, TaskSpec};
use crate::sys::mounts::{MountChange, change_mount};

/// A tree ready to become a VMM's root, which is the calling thread's working directory.
#[derive(Debug)]
pub(crate) struct AssembledTree {
    /// Root of the tree, which is a mount point (`O_PATH`).
    pub root: OwnedFd,
    /// Files on which the guest is to mount devices of its own.
    pub devices: Vec<DeviceMount>,
}

/// A device of the host's that the spec binds into the tree: the guest mounts its own of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceMount {
    /// Name of the device in the guest's `/dev`.
    pub device: &'static str,
    /// File in the tree that the device is mounted on.
    pub destination: PathBuf,
}

/// Assembles the tree of `spec`, in the calling thread's mount namespace. The thread has done
/// `unshare(CLONE_FS | CLONE_NEWNS)` and made all mounts private; no other thread is in that namespace.
///
/// # Errors
/// [`TreeError`]. Mounts that were made until then are released with the namespace.
pub(crate) fn assemble(
    spec: &TaskSpec,
    rootfs_mounts: &[RootfsMount],
) -> Result<AssembledTree, TreeError> {
    let host = |step| move |source: io::Error| TreeError::Host { step, source };
    let label = spec.labels.selinux_mount.as_deref();
    let root = rootfs::mount(rootfs_mounts, &spec.rootfs, label)?;
    if spec.guest_dev {
        dev::mount(root.as_fd(), spec)?;
    }
    if spec.guest_proc {
        // The guest needs a directory to mount it on; without one the program runs all the same.
        if let Err(error) = point::ensure(root.as_fd(), Path::new("/proc"), PointKind::Directory) {
            tracing::warn!(
                error = crate::error::chain(&error),
                "the task will see no /proc"
            );
        }
    }
    let devices = mount_all(root.as_fd(), spec)?;
    point::ensure_working_directory(root.as_fd(), &spec.process.cwd)?;
    mask::apply(root.as_fd(), spec)?;
    if spec.rootfs_readonly {
        let change = MountChange {
            read_only: true,
            ..MountChange::default()
        };
        change_mount(&root, change).map_err(host("make the rootfs read-only"))?;
    }
    // Each bind was stripped already; this is the promise that nothing was overlooked.
    bind::drop_kernels(&root, Path::new("/"))?;
    rustix::process::fchdir(&root).map_err(|errno| host("enter the tree")(errno.into()))?;
    Ok(AssembledTree { root, devices })
}

/// Mounts the spec's mounts in its order, so that a later one may lie on an earlier one.
fn mount_all(root: BorrowedFd<'_>, spec: &TaskSpec) -> Result<Vec<DeviceMount>, TreeError> {
    let mut devices = Vec::new();
    for mount in &spec.mounts {
        let destination = mount.destination.as_path();
        match &mount.source {
            MountSource::Bind { path, recursive } => match bind::guest_device(path) {
                Some(device) => {
                    point::ensure(root, destination, PointKind::File)?;
                    devices.push(DeviceMount {
                        device,
                        destination: destination.to_owned(),
                    });
                }
                None => bind::mount(root, path, *recursive, destination, mount.read_only)?,
            },
            MountSource::Tmpfs(options) => {
                spec_tmpfs::mount(root, options, destination, mount.read_only, spec)?;
            }
        }
    }
    Ok(devices)
}

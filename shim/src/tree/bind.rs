//! Bind mounts: a copy of the host's mounts, taken through a descriptor and stripped of mounts that must not
//! enter.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::TreeError;
use super::point::{self, PointKind};
use crate::mountinfo::{self, Mount};
use crate::sys::mounts::{MountChange, change_mount};

/// Most mounts dropped from one bind; a host has about twenty that must not enter.
const DROPPED_MAX: usize = 4096;

/// Name, major and minor of the host's devices that a guest has too (kernel
/// `Documentation/admin-guide/devices.txt`).
const GUEST_DEVICES: [(&str, u32, u32); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// The guest's own device of that name, where `source` is one: `/dev/null` above all, which masks files.
/// For any other kind of `source` the answer is `None`, and the bind reports what is wrong.
pub(super) fn guest_device(source: &Path) -> Option<&'static str> {
    let stat = rustix::fs::stat(source).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return None;
    }
    let number = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let device = GUEST_DEVICES
        .iter()
        .find(|(_, major, minor)| (*major, *minor) == number);
    device.map(|(name, ..)| *name)
}

/// Binds `source` on `destination` inside the tree.
pub(super) fn mount(
    root: BorrowedFd<'_>,
    source: &Path,
    recursive: bool,
    destination: &Path,
    read_only: bool,
) -> Result<(), TreeError> {
    let (copy, kind) = copy(source, recursive, destination)?;
    let change = MountChange {
        read_only,
        harmless: true,
        recursive,
    };
    let failed = |source| TreeError::Attach {
        destination: destination.to_owned(),
        source,
    };
    change_mount(&copy, change).map_err(failed)?;
    let point = point::ensure(root, destination, kind)?;
    attach(&copy, point.as_fd()).map_err(failed)?;
    if recursive {
        drop_kernels(&copy, destination)?;
    }
    Ok(())
}

/// A detached copy of the mounts at `source`, which must lie on storage.
pub(super) fn copy(
    source: &Path,
    recursive: bool,
    destination: &Path,
) -> Result<(OwnedFd, PointKind), TreeError> {
    let failed = |err: io::Error| TreeError::Source {
        destination: destination.to_owned(),
        path: source.to_owned(),
        source: err,
    };
    let file = rustix::fs::openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    let id = mountinfo::mount_id(&file).map_err(failed)?;
    let mounts = list_mounts()?;
    let listed = mounts.iter().find(|mount| mount.id == id);
    let kind = listed.map_or("a mount that the kernel does not list", |mount| &mount.kind);
    if listed.is_none_or(Mount::is_kernels) {
        return Err(TreeError::KernelFiles {
            destination: destination.to_owned(),
            path: source.to_owned(),
            kind: kind.to_owned(),
        });
    }
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let copy = rustix::mount::open_tree(&file, c"", flags).map_err(|errno| failed(errno.into()))?;
    let kind = PointKind::of(copy.as_fd()).map_err(failed)?;
    Ok((copy, kind))
}

/// Mounts a detached tree on a point.
pub(super) fn attach(tree: &OwnedFd, point: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, c"", point, c"", flags)?)
}

/// Unmounts file systems below `top` that are interfaces to the kernel. The paths are the kernel's own, so they
/// hold no symlinks; a process that swaps one for a symlink meanwhile only makes this function fail.
pub(super) fn drop_kernels(top: &OwnedFd, destination: &Path) -> Result<(), TreeError> {
    for _ in 0..DROPPED_MAX {
        let Some(found) = first_kernels(top)? else {
            return Ok(());
        };
        tracing::debug!(?destination, path = ?found.point, kind = found.kind, "kept out of the tree");
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&found.point, flags).map_err(|errno| TreeError::Attach {
            destination: destination.to_owned(),
            source: errno.into(),
        })?;
    }
    match first_kernels(top)? {
        None => Ok(()),
        Some(Mount { point, kind, .. }) => {
            let destination = destination.to_owned();
            Err(TreeError::KernelFiles {
                destination,
                path: point,
                kind,
            })
        }
    }
}

fn list_mounts() -> Result<Vec<Mount>, TreeError> {
    mountinfo::read().map_err(|source| TreeError::Host {
        step: "list the mounts",
        source,
    })
}

fn first_kernels(top: &OwnedFd) -> Result<Option<Mount>, TreeError> {
    let id = mountinfo::mount_id(top).map_err(|source| TreeError::Host {
        step: "read a mount's id",
        source,
    })?;
    let mounts = list_mounts()?;
    let found = mountinfo::below(&mounts, id)
        .into_iter()
        .find(|mount| mount.is_kernels());
    Ok(found.cloned())
}

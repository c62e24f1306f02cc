//! Masked paths of the tree, whose content is hidden, and read-only paths.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags};

use super::point::{PointKind, open_inside};
use super::{TreeError, bind, tmpfs};
use crate::bundle::TaskSpec;
use crate::sys::mounts::{MountChange, change_mount};

/// Name of the empty file that hides others.
const EMPTY: &CStr = c"empty";

/// Applies the spec's two lists to the tree below `root`, as runc does: a path that does not exist is skipped,
/// symbolic links are followed inside the tree, a file is hidden by an empty file and a directory by an empty
/// directory, both read-only. (runc's hidden file takes what is written to it; ours refuses it.)
pub(super) fn apply(root: BorrowedFd<'_>, spec: &TaskSpec) -> Result<(), TreeError> {
    for path in &spec.readonly_paths {
        if let Some(point) = find(root, path)? {
            protect(&point).map_err(failed(path))?;
        }
    }
    let mut files: Vec<(&PathBuf, OwnedFd)> = Vec::new();
    for path in &spec.masked_paths {
        let Some(point) = find(root, path)? else {
            continue;
        };
        match PointKind::of(point.as_fd()).map_err(failed(path))? {
            PointKind::Directory => hide_directory(&point, spec, path)?,
            PointKind::File => files.push((path, point)),
        }
    }
    hide_files(root, spec, &files)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    |source| TreeError::Attach {
        destination: path.to_owned(),
        source,
    }
}

/// Opens the place of the path; `None` where it does not exist, or where a link of the image leads to the root
/// itself.
fn find(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, TreeError> {
    let found = match open_inside(root, path, OFlags::PATH) {
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::NOTDIR)
            ) =>
        {
            return Ok(None);
        }
        found => found.map_err(failed(path))?,
    };
    let is_root = same_file(root, found.as_fd()).map_err(failed(path))?;
    if is_root {
        tracing::debug!(?path, "the path leads to the tree's root; left as it is");
    }
    Ok((!is_root).then_some(found))
}

fn same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let mask = StatxFlags::INO | StatxFlags::MNT_ID;
    let of = |fd| rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask);
    let (one, other) = (of(one)?, of(other)?);
    Ok((one.stx_mnt_id, one.stx_ino) == (other.stx_mnt_id, other.stx_ino))
}

/// Mounts a place onto itself, read-only; mounts below it stay as they are.
fn protect(point: &OwnedFd) -> io::Result<()> {
    let copy = copy(point.as_fd(), c"", OpenTreeFlags::AT_RECURSIVE)?;
    let change = MountChange {
        read_only: true,
        harmless: true,
        recursive: false,
    };
    change_mount(&copy, change)?;
    bind::attach(&copy, point.as_fd())
}

fn copy(at: BorrowedFd<'_>, name: &CStr, more: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(at, name, flags | more)
}

fn hide_directory(point: &OwnedFd, spec: &TaskSpec, path: &Path) -> Result<(), TreeError> {
    let parameters = tmpfs::parameters(&[("nr_inodes", "2"), ("mode", "755")], spec);
    let empty = tmpfs::create(&parameters, MountAttrFlags::MOUNT_ATTR_RDONLY, path)?;
    bind::attach(&empty, point.as_fd()).map_err(failed(path))
}

/// Hides all files by one empty file, which lies on a tmpfs that is mounted for the length of this call: the kernel
/// copies mounts of a namespace only. Over the tree's root that tmpfs hides nothing that this call needs.
fn hide_files(
    root: BorrowedFd<'_>,
    spec: &TaskSpec,
    files: &[(&PathBuf, OwnedFd)],
) -> Result<(), TreeError> {
    let Some((first, _)) = files.first() else {
        return Ok(());
    };
    let parameters = tmpfs::parameters(&[("nr_inodes", "4"), ("mode", "755")], spec);
    let masks = tmpfs::create(&parameters, MountAttrFlags::empty(), first)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&masks, EMPTY, flags, Mode::from_raw_mode(0o444));
    file.map(drop)
        .map_err(|errno| failed(first)(errno.into()))?;
    bind::attach(&masks, root).map_err(failed(first))?;
    let change = MountChange {
        read_only: true,
        ..MountChange::default()
    };
    for (path, point) in files {
        let copy = copy(masks.as_fd(), EMPTY, OpenTreeFlags::empty())
            .map_err(|errno| failed(path)(errno.into()))?;
        let hide = || {
            change_mount(&copy, change)?;
            bind::attach(&copy, point.as_fd())
        };
        hide().map_err(failed(path))?;
    }
    let place = format!("/proc/thread-self/fd/{}", masks.as_raw_fd());
    rustix::mount::unmount(place, UnmountFlags::DETACH).map_err(|errno| failed(first)(errno.into()))
}

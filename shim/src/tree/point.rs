//! Mount points: found, or made, inside the tree and never outside.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::TreeError;

/// Kind of a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointKind {
    Directory,
    File,
}

impl PointKind {
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mode = rustix::fs::fstat(fd)?.st_mode;
        Ok(match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Directory,
            _ => Self::File,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Directory => "a directory",
            Self::File => "a file",
        }
    }
}

/// Most times that a path is resolved anew because a component was renamed meanwhile. A guest that renames all the
/// time could keep the shim resolving for ever.
const RESOLVE_ATTEMPTS_MAX: u32 = 128;

/// Opens `path` as seen by a process whose root is `root`: symlinks and `..` end there.
///
/// # Errors
/// openat2(2)'s; EAGAIN when renames have interfered [`RESOLVE_ATTEMPTS_MAX`] times.
pub(crate) fn open_inside(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let open = || rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
    Ok(unless_renamed(open)?)
}

/// Repeats an open that failed because a component was renamed while `..` was followed (EAGAIN of openat2(2)).
fn unless_renamed<T>(mut open: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 1..RESOLVE_ATTEMPTS_MAX {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    open()
}

/// The directory that a mount on `destination` would hide, if there is one.
pub(super) fn find_directory(
    root: BorrowedFd<'_>,
    destination: &Path,
) -> Result<Option<OwnedFd>, TreeError> {
    match open_inside(root, destination, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(found) => Ok(Some(found)),
        // A file in the way is reported when the place is made.
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(TreeError::Point {
            destination: destination.to_owned(),
            source,
        }),
    }
}

/// Opens the place for a mount, and makes it if it does not exist.
pub(super) fn ensure(
    root: BorrowedFd<'_>,
    destination: &Path,
    kind: PointKind,
) -> Result<OwnedFd, TreeError> {
    let failed = |source| TreeError::Point {
        destination: destination.to_owned(),
        source,
    };
    let point = match open_inside(root, destination, OFlags::PATH) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            make(root, destination, kind).map_err(failed)?
        }
        result => result.map_err(failed)?,
    };
    if PointKind::of(point.as_fd()).map_err(failed)? == kind {
        Ok(point)
    } else {
        Err(TreeError::Mismatch {
            destination: destination.to_owned(),
            what: kind.name(),
        })
    }
}

/// Makes the directory in which the task's program begins, if it does not exist: owned by root and with mode 0755,
/// as runc makes it.
pub(super) fn ensure_working_directory(root: BorrowedFd<'_>, path: &Path) -> Result<(), TreeError> {
    match ensure(root, path, PointKind::Directory) {
        Ok(_) => Ok(()),
        Err(TreeError::Point { source, .. }) => Err(source),
        Err(_) => Err(Errno::NOTDIR.into()),
    }
    .map_err(|source| TreeError::WorkingDirectory {
        path: path.to_owned(),
        source,
    })
}

/// Makes the missing components of `destination`. Each step is opened from the root anew, so that symlinks on
/// the way lead where they would lead a process inside.
fn make(root: BorrowedFd<'_>, destination: &Path, kind: PointKind) -> io::Result<OwnedFd> {
    let mut parent = open_inside(root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    let mut path = PathBuf::from("/");
    let names: Vec<&OsStr> = destination.iter().skip(1).collect();
    for (i, name) in names.iter().enumerate() {
        path.push(name);
        let kind = if i + 1 == names.len() {
            kind
        } else {
            PointKind::Directory
        };
        parent = match open_inside(root, &path, OFlags::PATH) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                make_one(&parent, name, kind)?;
                open_inside(root, &path, OFlags::PATH)?
            }
            result => result?,
        };
    }
    Ok(parent)
}

fn make_one(parent: &OwnedFd, name: &OsStr, kind: PointKind) -> io::Result<()> {
    let made = match kind {
        PointKind::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        PointKind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        // Another process made it meanwhile, or it is a symlink to nowhere: opening it shows which.
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_that_never_end_hold_nobody_up() {
        let mut attempts = 0;
        let held = unless_renamed(|| {
            attempts += 1;
            Err::<(), _>(Errno::AGAIN)
        });
        assert_eq!((held, attempts), (Err(Errno::AGAIN), RESOLVE_ATTEMPTS_MAX));
        let mut renames = [Err(Errno::AGAIN), Err(Errno::AGAIN), Ok(7)].into_iter();
        assert_eq!(unless_renamed(|| renames.next().unwrap()), Ok(7));
    }
}

//! A directory of a cgroup, held open and locked: a later directory of the same path is another one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;

use super::CgroupError;
use super::host::Kind;
use crate::journal::DirectoryIdentity;

/// Longest file of a cgroup that is read, bytes; `io.stat` grows with the host's disks.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Origin of a cgroup's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Made by this task, and removed with it.
    Made,
    /// Found empty: an operator's, whose limits are put back and whose directory stays.
    Joined,
}

/// A directory of a cgroup, open and locked.
#[derive(Debug)]
pub(super) struct Directory {
    pub path: PathBuf,
    pub kind: Kind,
    pub origin: Origin,
    dir: File,
    /// Files whose first value is in the journal; always empty for a directory that this task made.
    kept: Mutex<BTreeSet<String>>,
}

impl Directory {
    /// Opens a directory, and locks it for as long as this value and its clones live: no other task
    /// can take it as its own, not even while it is still empty.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] when another task holds it.
    pub(super) fn open(path: &Path, kind: Kind, origin: Origin) -> Result<Self, CgroupError> {
        let dir = open(path).map_err(|source| CgroupError::at(path, "open", source))?;
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let path = path.to_owned();
                return Err(CgroupError::InUse { path });
            }
            Err(errno) => return Err(CgroupError::at(path, "lock", errno.into())),
        }
        Ok(Self {
            path: path.to_owned(),
            kind,
            origin,
            dir,
            kept: Mutex::default(),
        })
    }

    /// The directory's name for the journal.
    pub(super) fn identity(&self) -> Result<DirectoryIdentity, CgroupError> {
        Ok(DirectoryIdentity {
            path: self.path.clone(),
            inode: inode(&self.dir)
                .map_err(|source| CgroupError::at(&self.path, "stat", source))?,
        })
    }

    /// Whether the file's first value has to be recorded before the file is changed: once for each
    /// file of a joined directory.
    pub(super) fn is_to_be_kept(&self, file: &str) -> bool {
        // A set is whole after every insert.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.origin == Origin::Joined && kept.insert(file.to_owned())
    }

    pub(super) fn try_clone(&self) -> Result<OwnedFd, CgroupError> {
        let clone = self.dir.try_clone().map(OwnedFd::from);
        clone.map_err(|source| CgroupError::at(&self.path, "open again", source))
    }

    /// Opens `cgroup.procs` for a child, which enters by writing itself into the file.
    pub(super) fn open_procs(&self) -> Result<OwnedFd, CgroupError> {
        let file = open_file(&self.dir, "cgroup.procs", OFlags::WRONLY);
        file.map(OwnedFd::from)
            .map_err(|source| CgroupError::at(&self.path, "open cgroup.procs of", source))
    }

    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        read_file(&self.dir, name)
    }

    pub(super) fn write(&self, name: &str, value: &str) -> io::Result<()> {
        write_file(&self.dir, name, value)
    }
}

/// Opens the directory of a cgroup, whatever its origin.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Whether a cgroup's directory cannot be removed as somebody is in it, or made as somebody is about to.
pub(super) fn is_busy(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Inode number of an open directory, as in [`DirectoryIdentity`].
pub(super) fn inode(dir: &File) -> io::Result<u64> {
    Ok(fstat(dir)?.st_ino)
}

/// Reads a file of the directory.
pub(super) fn read_file(dir: &File, name: &str) -> io::Result<String> {
    let file = open_file(dir, name, OFlags::RDONLY)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file of the directory in one call. The file is not created when absent: a cgroup's files are
/// the kernel's. An empty value becomes an empty line, as a write of nothing changes nothing.
pub(super) fn write_file(dir: &File, name: &str, value: &str) -> io::Result<()> {
    let mut file = open_file(dir, name, OFlags::WRONLY | OFlags::TRUNC)?;
    file.write_all(if value.is_empty() { "\n" } else { value }.as_bytes())
}

/// Opens a file of the directory, which has one name: a path could lead out of it.
pub(super) fn open_file(dir: &File, name: &str, flags: OFlags) -> io::Result<File> {
    if name.contains('/') {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let flags = flags | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?.into())
}

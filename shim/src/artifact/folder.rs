//! A directory of artifacts, held open: its files with names of our form, and no others.
//!
//! An artifact's name is its key, 64 hexadecimal digits; an artifact that is being written is `.KEY.N.PID`. No file
//! with another name is ever listed, read or removed, and a directory that holds any other file is
//! refused: the directory has another use. All work is done relative to the descriptor, so that a path that leads
//! elsewhere meanwhile changes nothing.
//!
//! Files for VMs to map are opened through a mount of their own that is read-only: a VMM that a guest has taken over
//! is still user 0, and could otherwise open the descriptor's file again, for writing, by its name in
//! `/proc`.

use std::fs::{DirBuilder, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock, fstat,
    openat, renameat, statat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::ArtifactKey;
use crate::sys::mounts::{MountChange, change_mount};

/// Hexadecimal digits of a key.
const KEY_DIGITS: usize = 64;
/// Write permission of the group and of all others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Number of this process's next write, part of its file's name.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The directory has another owner or another use.
    #[error("{setting} = {:?} is refused: {reason}", path.display())]
    Refused {
        /// Setting that names the directory.
        setting: &'static str,
        /// Path of the directory.
        path: PathBuf,
        /// Why the directory is refused, and what to change.
        reason: String,
    },
    /// The directory cannot be opened, made or read.
    #[error("cannot use the directory of artifacts {}", path.display())]
    Open {
        /// Path of the directory.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Kind of a file, by its name.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Artifact,
    /// The process of this pid is writing the artifact.
    Writing(u32),
}

/// The kind of file that `name` stands for; `None` for a name of another form.
fn name_of(name: &str) -> Option<Name> {
    let is_key = |text: &str| {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        text.len() == KEY_DIGITS && text.bytes().all(digit)
    };
    let Some(hidden) = name.strip_prefix('.') else {
        return is_key(name).then_some(Name::Artifact);
    };
    let mut parts = hidden.split('.');
    let (key, nth, pid) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && is_key(key) && nth.parse::<u64>().is_ok();
    whole.then_some(Name::Writing(pid.parse().ok()?))
}

/// An artifact in the directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub used: (i64, i64),
    pub bytes: u64,
}

/// An open directory of artifacts.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    directory: OwnedFd,
    /// Root of the directory's read-only mount, which is attached nowhere.
    read_only: OwnedFd,
}

impl Folder {
    /// Opens the directory that `setting` names. `None` when the directory does not exist.
    ///
    /// # Errors
    /// [`FolderError`]: `Refused` when another user owns the directory or may write to it.
    pub(super) fn open(setting: &'static str, path: &Path) -> Result<Option<Self>, FolderError> {
        let failed = |source: io::Error| FolderError::Open {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match openat(CWD, path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let folder = Self {
            path: path.to_owned(),
            read_only: read_only(&directory).map_err(failed)?,
            directory,
        };
        match folder.foreign_owner().map_err(failed)? {
            None => Ok(Some(folder)),
            Some(reason) => Err(folder.refused(setting, reason)),
        }
    }

    /// Makes the directory, with its parents, unless it exists.
    ///
    /// # Errors
    /// [`FolderError::Open`].
    pub(super) fn make(path: &Path) -> Result<(), FolderError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(|source| FolderError::Open {
            path: path.to_owned(),
            source,
        })
    }

    /// Checks that the directory holds artifacts only.
    ///
    /// # Errors
    /// [`FolderError`]: `Refused` when it holds any other file.
    pub(super) fn refuse_foreign(&self, setting: &'static str) -> Result<(), FolderError> {
        let names = self.names().map_err(|source| FolderError::Open {
            path: self.path.clone(),
            source,
        })?;
        match names.into_iter().find(|name| name_of(name).is_none()) {
            None => Ok(()),
            Some(name) => Err(self.refused(
                setting,
                format!("it holds {name:?}, which is no artifact; name a directory of its own"),
            )),
        }
    }

    fn refused(&self, setting: &'static str, reason: String) -> FolderError {
        FolderError::Refused {
            setting,
            path: self.path.clone(),
            reason,
        }
    }

    /// Why another user could change files in the directory; `None` when none could.
    fn foreign_owner(&self) -> io::Result<Option<String>> {
        let stat = fstat(&self.directory)?;
        let reason = if stat.st_uid != rustix::process::geteuid().as_raw() {
            format!(
                "it belongs to user {}; it has to belong to root",
                stat.st_uid
            )
        } else if stat.st_mode & WRITABLE_BY_OTHERS != 0 {
            format!(
                "others may write to it (mode {:04o}); `chmod 0700` mends that",
                stat.st_mode & 0o7777
            )
        } else {
            return Ok(None);
        };
        Ok(Some(reason))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Path of the directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Descriptor of the directory.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// The artifacts in the directory.
    pub(super) fn artifacts(&self) -> Vec<Entry> {
        let names = self.names().unwrap_or_default();
        let facts = |name: String| {
            let stat = statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let bytes = u64::try_from(stat.st_size).ok()?;
            let used = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?);
            Some(Entry { name, used, bytes })
        };
        let ours = |name: &String| name_of(name) == Some(Name::Artifact);
        names.into_iter().filter(ours).filter_map(facts).collect()
    }

    /// Opens an artifact as VMs map it; `None` when there is none of this name. The artifact counts as in use until
    /// its last descriptor and mapping are closed ([`Folder::remove_unused`]).
    pub(super) fn find(&self, key: &ArtifactKey) -> io::Result<Option<File>> {
        match self.open_read_only(key.as_str()) {
            Ok(file) => {
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: UTIME_NOW,
                };
                let times = Timestamps {
                    last_access: now,
                    last_modification: now,
                };
                // An artifact whose use cannot be noted is only removed earlier.
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let noted = utimensat(&self.directory, key.as_str(), &times, flags);
                if let Err(error) = noted {
                    tracing::debug!(%error, "cannot note the use of an artifact");
                }
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_read_only(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.read_only, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it is no regular file of ours"));
        }
        // A shim that is about to remove the artifact holds the lock for a moment: then the file is used without a
        // name.
        let _ = flock(&file, FlockOperation::NonBlockingLockShared);
        Ok(file)
    }

    /// Removes an artifact, also one that VMs map: they keep the file.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes an artifact that no VM maps; whether this call did. Another shim's removal gives no room.
    pub(super) fn remove_unused(&self, name: &str) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let removed = openat(&self.directory, name, flags, Mode::empty())
            .and_then(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).map(|()| file))
            .map_err(io::Error::from)
            .and_then(|_held| self.remove(name));
        removed.is_ok()
    }

    /// Writes `artifact` under its key: first under a temporary name, then renamed. Returns the file as VMs map
    /// it.
    pub(super) fn write(&self, key: &ArtifactKey, artifact: &File, sync: bool) -> io::Result<File> {
        // Two may write the same artifact at once, also in one shim: each has a name of its own, the
        // last wins.
        let nth = WRITES.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".{}.{nth}.{}", key.as_str(), std::process::id());
        let written = self.copy(artifact, &temporary, sync).and_then(|()| {
            let file = self.open_read_only(&temporary)?;
            renameat(&self.directory, &temporary, &self.directory, key.as_str())?;
            Ok(file)
        });
        if written.is_err() {
            // The temporary file is of no use; a failure to remove it changes nothing.
            let _ = self.remove(&temporary);
        }
        written
    }

    fn copy(&self, mut artifact: &File, name: &str, sync: bool) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut target = File::from(file);
        artifact.seek(SeekFrom::Start(0))?;
        io::copy(&mut artifact, &mut target)?;
        if sync { target.sync_all() } else { Ok(()) }
    }

    /// Removes files of shims that were killed while writing. A reused pid only delays the removal.
    pub(super) fn remove_abandoned(&self) {
        for name in self.names().unwrap_or_default() {
            if let Some(Name::Writing(pid)) = name_of(&name)
                && !Path::new(&format!("/proc/{pid}")).exists()
            {
                // The next write tries again.
                let _ = self.remove(&name);
            }
        }
    }
}

/// A read-only mount of the directory, attached nowhere, so that only this process reaches it.
fn read_only(directory: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let root = open_tree(directory, c"", flags)?;
    let change = MountChange {
        read_only: true,
        harmless: true,
        ..MountChange::default()
    };
    change_mount(&root, change)?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        let key = "0a".repeat(32);
        assert_eq!(name_of(&key), Some(Name::Artifact));
        assert_eq!(name_of(&format!(".{key}.3.42")), Some(Name::Writing(42)));
        for foreign in [
            "customer-database",
            ".backup.4194305",
            "lost+found",
            &key[1..],
            &format!("{key}0"),
            &key.to_uppercase(),
            &format!(".{key}.42"),
            &format!(".{key}.x.42"),
            &format!(".{key}.3.42.bak"),
            &format!("{key}.3.42"),
        ] {
            assert_eq!(name_of(foreign), None, "{foreign}");
        }
    }
}

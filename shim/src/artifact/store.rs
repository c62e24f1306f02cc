//! Where artifacts are kept: one file per key, written under another name and renamed.
//!
//! Two directories: `kept` on disk outlives a reboot, `shared` on a tmpfs is what VMs map. The pages of
//! a tmpfs file are charged to who wrote them, so no tenant pays for what all share; and no disk is
//! read when a task starts. Files are replaced by rename only and never cut short: a VM that maps one
//! keeps it. Each directory has a size, above which the least recently used go.
//!
//! What VMs map is opened through a mount of its own that is read-only: a VMM that a guest has taken over
//! is still user 0, and could otherwise open the descriptor's file again, for writing, by its name in
//! `/proc`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{OpenTreeFlags, open_tree};
use sha2::{Digest, Sha256};
use wasmvm_protocol::slot::{
    SLOT_HEADER_BYTES, SLOT_HEADER_USED_BYTES, SlotHeader, SlotHeaderError, SlotKind,
};

use super::prune;
use crate::artifact::ArtifactKey;
use crate::sys::mounts::{MountChange, change_mount};

/// Numbers what this process writes.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// A directory and what it may hold.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// Where; made at the first insert.
    pub path: PathBuf,
    /// The most that stays in it, bytes; what was just written stays in any case.
    pub bytes_max: u64,
}

/// The two directories.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Shelf,
    kept: Shelf,
}

/// Why an artifact cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refuses.
    #[error("cannot {action} the artifact {}", .path.display())]
    File {
        /// `read`, `write` or `replace`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// Cut short, changed, or not an artifact of ours.
    #[error("the artifact {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

impl Store {
    /// `shared` is a directory on a tmpfs, `kept` one on a disk.
    #[must_use]
    pub fn new(shared: Shelf, kept: Shelf) -> Self {
        Self { shared, kept }
    }

    /// Finds an artifact; brings it in from the disk at its first use since the host's boot. A damaged
    /// file is removed and counts as absent.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn find(&self, key: &ArtifactKey) -> Result<Option<File>, StoreError> {
        if sound(&self.shared.path, key, check_length)?.is_some() {
            return self.shared(key).map(Some);
        }
        // The disk is read once, so it is also the place to look at every byte.
        let Some(file) = sound(&self.kept.path, key, check_content)? else {
            return Ok(None);
        };
        write(&self.shared, key, &file)?;
        self.shared(key).map(Some)
    }

    /// Keeps a whole artifact file (header page and content) and returns it as VMs map it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn insert(&self, key: &ArtifactKey, artifact: &File) -> Result<File, StoreError> {
        write(&self.kept, key, artifact)?;
        write(&self.shared, key, artifact)?;
        self.shared(key)
    }

    /// As VMs map it.
    fn shared(&self, key: &ArtifactKey) -> Result<File, StoreError> {
        let path = self.shared.path.join(key.as_str());
        let opened = read_only(&self.shared.path).and_then(|root| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(root, key.as_str(), flags, Mode::empty())?);
            let metadata = file.metadata()?;
            if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
                return Err(io::Error::other("not a regular file of ours"));
            }
            Ok(file)
        });
        opened.map_err(|source| failed("read", &path, source))
    }
}

/// A mount of this directory that nobody else sees, and that cannot be written through.
fn read_only(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, directory, flags)?;
    let change = MountChange {
        read_only: true,
        harmless: true,
        ..MountChange::default()
    };
    change_mount(&root, change)?;
    Ok(root)
}

/// Opens a file read-only and checks it; `None` when it is absent or was damaged.
fn sound(
    directory: &Path,
    key: &ArtifactKey,
    check: fn(&mut File) -> Result<(), String>,
) -> Result<Option<File>, StoreError> {
    let path = directory.join(key.as_str());
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", &path, source)),
    };
    match check(&mut file) {
        Ok(()) => {
            prune::used(&file);
            Ok(Some(file))
        }
        Err(reason) => {
            let damaged = StoreError::Damaged {
                path: path.clone(),
                reason,
            };
            tracing::warn!(error = %damaged, "it will be compiled again");
            fs::remove_file(&path).map_err(|source| failed("replace", &path, source))?;
            Ok(None)
        }
    }
}

fn header(file: &File) -> Result<SlotHeader, String> {
    let mut bytes = [0; SLOT_HEADER_USED_BYTES];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|err| err.to_string())?;
    let header = SlotHeader::decode(&bytes).map_err(|err: SlotHeaderError| err.to_string())?;
    match header.kind {
        SlotKind::CoreArtifact | SlotKind::ComponentArtifact => Ok(header),
        SlotKind::Wasm => Err("it holds a module".into()),
    }
}

fn check_length(file: &mut File) -> Result<(), String> {
    let header = header(file)?;
    let length = file.metadata().map_err(|err| err.to_string())?.len();
    let expected = header.content_bytes + SLOT_HEADER_BYTES as u64;
    if length == expected {
        Ok(())
    } else {
        Err(format!("it has {length} bytes, not {expected}"))
    }
}

fn check_content(file: &mut File) -> Result<(), String> {
    check_length(file)?;
    let header = header(file)?;
    let digest = content_sha256(file).map_err(|err| err.to_string())?;
    if digest == header.sha256 {
        Ok(())
    } else {
        Err("its digest is another".into())
    }
}

/// SHA-256 of what follows the header page.
pub(super) fn content_sha256(file: &mut File) -> io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(SLOT_HEADER_BYTES as u64))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&chunk[..read]);
    }
}

/// Writes `artifact` to `directory` under its key: to a name nobody looks for, then renamed.
fn write(shelf: &Shelf, key: &ArtifactKey, artifact: &File) -> Result<(), StoreError> {
    let directory = shelf.path.as_path();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| failed("write", directory, source))?;
    remove_abandoned(directory);
    // Two may write the same artifact at once, also in one shim: each has a name of its own, the last wins.
    let nth = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{}.{nth}.{}", key.as_str(), std::process::id()));
    let written = copy(artifact, &temporary)
        .map_err(|source| failed("write", &temporary, source))
        .and_then(|()| {
            let path = directory.join(key.as_str());
            fs::rename(&temporary, &path).map_err(|source| failed("replace", &path, source))
        });
    if written.is_err() {
        // What was written is of no use; that it cannot be removed either changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    prune::prune(directory, shelf.bytes_max, key.as_str());
    written
}

/// Removes what shims that were killed while they wrote have left. A reused pid only delays that.
fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let writer = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.rsplit_once('.'))
            .and_then(|(_, pid)| pid.parse::<u32>().ok());
        if writer.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // The next write tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn copy(mut artifact: &File, path: &Path) -> io::Result<()> {
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    artifact.seek(SeekFrom::Start(0))?;
    io::copy(&mut artifact, &mut target)?;
    target.sync_all()
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd as _;
    use tempfile::{TempDir, tempdir, tempfile};

    const CONTENT: &[u8] = b"machine code";

    fn artifact() -> File {
        let header = SlotHeader {
            kind: SlotKind::CoreArtifact,
            content_bytes: CONTENT.len() as u64,
            sha256: Sha256::digest(CONTENT).into(),
        };
        let file = tempfile().unwrap();
        file.write_all_at(&header.encode(), 0).unwrap();
        file.write_all_at(CONTENT, SLOT_HEADER_BYTES as u64)
            .unwrap();
        file
    }

    fn shelf(path: PathBuf) -> Shelf {
        Shelf {
            path,
            bytes_max: 1 << 20,
        }
    }

    fn store() -> (TempDir, Store, ArtifactKey) {
        let root = tempdir().unwrap();
        let store = Store::new(
            shelf(root.path().join("shared")),
            shelf(root.path().join("kept")),
        );
        (root, store, ArtifactKey::of_parts(&[1; 32], "c", "sse"))
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(SLOT_HEADER_BYTES as u64))
            .unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_inserted_is_found() {
        let (_root, store, key) = store();
        assert!(store.find(&key).unwrap().is_none());
        assert_eq!(content(store.insert(&key, &artifact()).unwrap()), CONTENT);
        assert_eq!(content(store.find(&key).unwrap().unwrap()), CONTENT);
    }

    #[test]
    fn a_reboot_costs_a_copy_not_a_compile() {
        let (_root, store, key) = store();
        store.insert(&key, &artifact()).unwrap();
        fs::remove_dir_all(&store.shared.path).unwrap();
        assert_eq!(content(store.find(&key).unwrap().unwrap()), CONTENT);
        assert!(store.shared.path.join(key.as_str()).exists());
    }

    #[test]
    fn a_damaged_file_counts_as_absent_and_goes() {
        let (_root, store, key) = store();
        store.insert(&key, &artifact()).unwrap();
        fs::remove_dir_all(&store.shared.path).unwrap();
        let kept = store.kept.path.join(key.as_str());
        let file = OpenOptions::new().write(true).open(&kept).unwrap();
        file.write_all_at(b"M", SLOT_HEADER_BYTES as u64).unwrap();
        assert!(store.find(&key).unwrap().is_none());
        assert!(!kept.exists());
        store.insert(&key, &artifact()).unwrap();
        let shared = OpenOptions::new()
            .write(true)
            .open(store.shared.path.join(key.as_str()))
            .unwrap();
        shared.set_len(SLOT_HEADER_BYTES as u64 + 3).unwrap();
        assert_eq!(
            content(store.find(&key).unwrap().unwrap()),
            CONTENT,
            "from the disk again"
        );
    }

    #[test]
    fn what_a_killed_writer_left_goes_with_the_next_write() {
        let (_root, store, key) = store();
        store.insert(&key, &artifact()).unwrap();
        // Above any pid (`PID_MAX_LIMIT` is 2^22), and our own.
        let dead = store.kept.path.join(format!(".{}.7.4194305", key.as_str()));
        let other = store.kept.path.join(format!(".x.7.{}", std::process::id()));
        fs::write(&dead, "half").unwrap();
        fs::write(&other, "half").unwrap();
        store.insert(&key, &artifact()).unwrap();
        assert!(!dead.exists() && other.exists());
        assert!(store.find(&key).unwrap().is_some());
    }

    #[test]
    fn a_running_vm_keeps_the_file_it_maps() {
        let (_root, store, key) = store();
        let mapped = store.insert(&key, &artifact()).unwrap();
        store.insert(&key, &artifact()).unwrap();
        assert_eq!(content(mapped), CONTENT);
    }

    #[test]
    fn what_vms_map_cannot_be_opened_for_writing_again() {
        let (_root, store, key) = store();
        let mapped = store.insert(&key, &artifact()).unwrap();
        let again = format!("/proc/self/fd/{}", mapped.as_raw_fd());
        let error = OpenOptions::new().write(true).open(again).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let found = store.find(&key).unwrap().unwrap();
        assert_eq!(content(found), CONTENT);
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let (_root, mut store, first) = store();
        store.insert(&first, &artifact()).unwrap();
        let second = ArtifactKey::of_parts(&[2; 32], "c", "sse");
        store.shared.bytes_max = 1;
        store.insert(&second, &artifact()).unwrap();
        assert!(!store.shared.path.join(first.as_str()).exists());
        // From the disk, which has room.
        assert_eq!(content(store.find(&first).unwrap().unwrap()), CONTENT);
        assert!(!store.shared.path.join(second.as_str()).exists());
        store.kept.bytes_max = 1;
        store.insert(&first, &artifact()).unwrap();
        assert!(store.find(&second).unwrap().is_none());
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let (root, store, key) = store();
        fs::write(root.path().join("shared"), "in the way").unwrap();
        assert!(store.insert(&key, &artifact()).is_err());
        let mut unreadable = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(root.path().join("w"))
            .unwrap();
        unreadable.write_all(b"x").unwrap();
        assert!(write(&shelf(root.path().join("other")), &key, &unreadable).is_err());
        assert_eq!(fs::read_dir(root.path().join("other")).unwrap().count(), 0);
    }
}

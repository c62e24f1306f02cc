//! Where artifacts are kept: one file per key, written under another name and renamed.
//!
//! Two directories: `kept` on disk outlives a reboot, `shared` on a tmpfs is what VMs map. The pages of
//! a tmpfs file are charged to who wrote them, so no tenant pays for what all share; and no disk is
//! read when a task starts. Files are replaced by rename only and never cut short: a VM that maps one
//! keeps it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmvm_protocol::slot::{
    SLOT_HEADER_BYTES, SLOT_HEADER_USED_BYTES, SlotHeader, SlotHeaderError, SlotKind,
};

use crate::artifact::ArtifactKey;

/// The two directories.
#[derive(Clone, Debug)]
pub struct Store {
    shared: PathBuf,
    kept: PathBuf,
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
    /// `shared` is a directory on a tmpfs, `kept` one on a disk; both are made at the first insert.
    #[must_use]
    pub fn new(shared: PathBuf, kept: PathBuf) -> Self {
        Self { shared, kept }
    }

    /// Finds an artifact; brings it in from the disk at its first use since the host's boot. A damaged
    /// file is removed and counts as absent.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn find(&self, key: &ArtifactKey) -> Result<Option<File>, StoreError> {
        let shared = self.shared.join(key.as_str());
        if let Some(file) = sound(&shared, check_length)? {
            return Ok(Some(file));
        }
        let kept = self.kept.join(key.as_str());
        // The disk is read once, so it is also the place to look at every byte.
        let Some(file) = sound(&kept, check_content)? else {
            return Ok(None);
        };
        write(&self.shared, key, &file)?;
        open(&shared).map_err(|source| failed("read", &shared, source))
    }

    /// Keeps a whole artifact file (header page and content) and returns it as VMs map it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn insert(&self, key: &ArtifactKey, artifact: &File) -> Result<File, StoreError> {
        write(&self.kept, key, artifact)?;
        write(&self.shared, key, artifact)?;
        let path = self.shared.join(key.as_str());
        File::open(&path).map_err(|source| failed("read", &path, source))
    }
}

/// Opens a file read-only and checks it; `None` when it is absent or was damaged.
fn sound(
    path: &Path,
    check: fn(&mut File) -> Result<(), String>,
) -> Result<Option<File>, StoreError> {
    let Some(mut file) = open(path).map_err(|source| failed("read", path, source))? else {
        return Ok(None);
    };
    match check(&mut file) {
        Ok(()) => Ok(Some(file)),
        Err(reason) => {
            let damaged = StoreError::Damaged {
                path: path.to_owned(),
                reason,
            };
            tracing::warn!(error = %damaged, "it will be compiled again");
            fs::remove_file(path).map_err(|source| failed("replace", path, source))?;
            Ok(None)
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
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
fn write(directory: &Path, key: &ArtifactKey, artifact: &File) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| failed("write", directory, source))?;
    remove_abandoned(directory);
    // Two shims may compile the same module at once: each has a name of its own, the last one wins.
    let temporary = directory.join(format!(".{}.{}", key.as_str(), std::process::id()));
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
        .create(true)
        .truncate(true)
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

    fn store() -> (TempDir, Store, ArtifactKey) {
        let root = tempdir().unwrap();
        let store = Store::new(root.path().join("shared"), root.path().join("kept"));
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
        fs::remove_dir_all(&store.shared).unwrap();
        assert_eq!(content(store.find(&key).unwrap().unwrap()), CONTENT);
        assert!(store.shared.join(key.as_str()).exists());
    }

    #[test]
    fn a_damaged_file_counts_as_absent_and_goes() {
        let (_root, store, key) = store();
        store.insert(&key, &artifact()).unwrap();
        fs::remove_dir_all(&store.shared).unwrap();
        let kept = store.kept.join(key.as_str());
        let file = OpenOptions::new().write(true).open(&kept).unwrap();
        file.write_all_at(b"M", SLOT_HEADER_BYTES as u64).unwrap();
        assert!(store.find(&key).unwrap().is_none());
        assert!(!kept.exists());
        store.insert(&key, &artifact()).unwrap();
        let shared = OpenOptions::new()
            .write(true)
            .open(store.shared.join(key.as_str()))
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
        let dead = store.kept.join(format!(".{}.4194305", key.as_str()));
        let other = store.kept.join(format!(".x.{}", std::process::id()));
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
        assert!(write(&root.path().join("other"), &key, &unreadable).is_err());
        assert_eq!(fs::read_dir(root.path().join("other")).unwrap().count(), 0);
    }
}

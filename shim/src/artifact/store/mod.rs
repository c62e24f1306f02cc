//! The files of artifacts: one per key, written under another name and renamed.
//!
//! Two directories: `kept` on disk outlives a reboot, `shared` on a tmpfs of ours ([`super::memory`]) is
//! for VMs to map. Files are replaced by rename only and never cut short: a VM that maps a file keeps it. Each
//! directory has a size, above which the least recently used artifacts are removed ([`super::room`]).
//!
//! A full directory fails no start: where the memory has no room, VMs map the file on disk, and where the
//! disk has none either, the compiler's own file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wasmvm_protocol::slot::{
    SLOT_HEADER_BYTES, SLOT_HEADER_USED_BYTES, SlotHeader, SlotHeaderError, SlotKind,
};

use super::folder::{Folder, FolderError};
use super::memory::{HOST_MOUNTS, Memory};
use super::room::{self, Budget};
use crate::artifact::ArtifactKey;
use crate::error::{Coded, ErrorCode, chain};
use crate::sha256::digest_of_rest;

/// The setting that names the directory on disk.
const DISK_SETTING: &str = "artifact_dir";
/// Part of the disk that artifacts leave to others, per cent.
const DISK_RESERVE_PERCENT: u64 = 10;

/// A directory of artifacts and the most that it may hold.
#[derive(Clone, Debug)]
pub(crate) struct CacheDir {
    /// Path of the directory; made at the first insert.
    pub path: PathBuf,
    /// Most bytes of artifacts that stay in the directory.
    pub bytes_max: u64,
}

/// The directories of a host's artifacts.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    shared: Option<Memory>,
    kept: CacheDir,
}

/// Why an artifact can be neither read nor kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The directory on disk cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The file that the compiler has delivered cannot be opened.
    #[error("cannot open what the compiler has delivered")]
    Delivered(#[source] io::Error),
}

impl Coded for StoreError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Folder(FolderError::Refused { .. }) => ErrorCode::FailedPrecondition,
            Self::Folder(FolderError::Open { .. }) | Self::Delivered(_) => ErrorCode::Internal,
        }
    }
}

impl Store {
    /// A store whose `shared` becomes a tmpfs, if VMs are to share memory, and whose `kept` is a directory on a
    /// disk.
    #[must_use]
    pub(crate) fn new(shared: Option<CacheDir>, kept: CacheDir) -> Self {
        let shared = shared.map(|shelf| Memory {
            path: shelf.path,
            bytes_max: shelf.bytes_max,
            namespace: HOST_MOUNTS,
        });
        Self { shared, kept }
    }

    /// Finds an artifact; brings it in from the disk at its first use since the host's boot. A damaged
    /// file is removed and counts as absent.
    ///
    /// # Errors
    /// [`StoreError::Folder`] when the directory on disk is not ours.
    pub(crate) fn find(&self, key: &ArtifactKey) -> Result<Option<File>, StoreError> {
        let memory = self.memory();
        if let Some(file) = memory
            .as_ref()
            .and_then(|memory| sound(memory, key, check_length))
        {
            return Ok(Some(file));
        }
        let Some(disk) = self.disk()? else {
            return Ok(None);
        };
        // The disk is read once, so every byte is checked here.
        let Some(file) = sound(&disk, key, check_content) else {
            return Ok(None);
        };
        let shared = memory.and_then(|memory| self.share(&memory, key, &file));
        Ok(Some(shared.unwrap_or(file)))
    }

    /// Keeps a whole artifact file (header page and content) and returns it as VMs map it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn insert(&self, key: &ArtifactKey, artifact: &File) -> Result<File, StoreError> {
        if let Err(error) = Folder::make(&self.kept.path) {
            tracing::warn!(error = %chain(&error), "artifacts are not kept");
        }
        let budget = Budget {
            bytes_max: self.kept.bytes_max,
            reserve_percent: DISK_RESERVE_PERCENT,
        };
        let kept = self
            .disk()?
            .and_then(|disk| keep(&disk, budget, key, artifact, true));
        let shared = self
            .memory()
            .and_then(|memory| self.share(&memory, key, artifact));
        if let Some(file) = shared.or(kept) {
            return Ok(file);
        }
        tracing::warn!(
            key = key.as_str(),
            "an artifact is not shared, as there is no room for it"
        );
        File::open(format!("/proc/self/fd/{}", artifact.as_raw_fd())).map_err(StoreError::Delivered)
    }

    /// Removes an artifact that does not fit this host any more.
    pub(crate) fn forget(&self, key: &ArtifactKey) {
        let disk = self.disk().ok().flatten();
        for folder in self.memory().into_iter().chain(disk) {
            if let Err(error) = folder.remove(key.as_str()) {
                tracing::warn!(%error, key = key.as_str(), "cannot remove an artifact");
            }
        }
    }

    /// An owner's copy of a file that was installed with this program, for the VMs of the owner alone;
    /// `None` when there is no room for it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn installed(&self, path: &Path, owner: &str) -> io::Result<Option<File>> {
        let source = File::open(path)?;
        let metadata = source.metadata()?;
        let key = ArtifactKey::of_installed(&metadata, owner);
        let Some(memory) = self.memory() else {
            return Ok(None);
        };
        let is_whole = |file: &File| {
            file.metadata()
                .is_ok_and(|copy| copy.len() == metadata.len())
        };
        let found = memory.find(&key).ok().flatten().filter(is_whole);
        Ok(found.or_else(|| self.share(&memory, &key, &source)))
    }

    /// The tmpfs; `None` when it cannot be used, and VMs then map files on disk.
    fn memory(&self) -> Option<Folder> {
        let opened = self.shared.as_ref()?.open();
        opened
            .inspect_err(|error| tracing::warn!(error = %chain(error), "artifacts are not shared"))
            .ok()
    }

    /// The directory on disk; `None` when it does not exist, or cannot be read.
    fn disk(&self) -> Result<Option<Folder>, StoreError> {
        let opened = Folder::open(DISK_SETTING, &self.kept.path).and_then(|folder| {
            if let Some(folder) = &folder {
                folder.refuse_foreign(DISK_SETTING)?;
            }
            Ok(folder)
        });
        match opened {
            Err(error @ FolderError::Open { .. }) => {
                tracing::warn!(error = %chain(&error), "artifacts are not kept");
                Ok(None)
            }
            other => Ok(other?),
        }
    }

    fn share(&self, memory: &Folder, key: &ArtifactKey, artifact: &File) -> Option<File> {
        let budget = self.shared.as_ref()?.budget();
        keep(memory, budget, key, artifact, false)
    }
}

/// Opens an artifact and checks it; `None` when there is none or it was damaged.
fn sound(
    folder: &Folder,
    key: &ArtifactKey,
    check: fn(&mut File) -> Result<(), String>,
) -> Option<File> {
    let reason = match folder.find(key) {
        Ok(None) => return None,
        Ok(Some(mut file)) => match check(&mut file) {
            Ok(()) => return Some(file),
            Err(reason) => reason,
        },
        Err(error) => error.to_string(),
    };
    let path = folder.path().join(key.as_str());
    tracing::warn!(path = %path.display(), reason, "an artifact is damaged; it will be compiled again");
    if let Err(error) = folder.remove(key.as_str()) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a damaged artifact");
    }
    None
}

/// Writes an artifact where there is room, or room can be made; `None` otherwise.
fn keep(
    folder: &Folder,
    budget: Budget,
    key: &ArtifactKey,
    artifact: &File,
    sync: bool,
) -> Option<File> {
    folder.remove_abandoned();
    let write = || {
        let bytes = artifact.metadata()?.len();
        if !room::make_room(folder, budget, bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match folder.write(key, artifact, sync) {
            Err(error) if is_full(&error) => {
                // Other programs write to the file system as well.
                room::make_all_room(folder);
                folder.write(key, artifact, sync)
            }
            result => result,
        }
    };
    let path = folder.path();
    write()
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "an artifact finds no place"),
        )
        .ok()
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
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

/// SHA-256 of the content behind the header page.
pub(super) fn content_sha256(file: &mut File) -> io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(SLOT_HEADER_BYTES as u64))?;
    digest_of_rest(file).map(|(sha256, _)| sha256)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

//! Files that are changed whole, by a rename, and that can be put back.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

/// Permissions of a file that is new.
const MODE: u32 = 0o644;
/// Permissions of a folder that is new.
const FOLDER_MODE: u32 = 0o755;

/// A file that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// The file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file cannot be written, or removed.
    #[error("cannot change {}; `wasmvm containerd` is for root", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// The text of a file; `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::Read(path.to_owned(), error)),
    }
}

/// A file with `text` beside `path`, which goes when it is dropped; its name ends in no `.toml`, so that no pattern of
/// an import finds it. Where the folder is missing, the file is in the nearest folder above.
pub(super) fn beside(path: &Path, text: &str) -> Result<NamedTempFile, FileError> {
    let folder = path.ancestors().skip(1).find(|folder| folder.is_dir());
    let folder = folder.unwrap_or(Path::new("/"));
    let made = Builder::new().prefix(".wasmvm-").tempfile_in(folder);
    made.and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file))
        .map_err(|error| FileError::Write(path.to_owned(), error))
}

/// Changes of files, in their order, each with what was there before.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<(PathBuf, Option<String>)>);

impl Changes {
    /// Gives `path` the content `text`, or removes it.
    pub(super) fn set(&mut self, path: &Path, text: Option<&str>) -> Result<(), FileError> {
        let before = read(path)?;
        if before.as_deref() == text {
            return Ok(());
        }
        put(path, text).map_err(|error| FileError::Write(path.to_owned(), error))?;
        self.0.push((path.to_owned(), before));
        Ok(())
    }

    /// Whether nothing had to be changed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts everything back, the last change first.
    pub(super) fn undo(self) -> Result<(), FileError> {
        self.0.into_iter().rev().try_for_each(|(path, text)| {
            put(&path, text.as_deref()).map_err(|error| FileError::Write(path, error))
        })
    }
}

fn put(path: &Path, text: Option<&str>) -> io::Result<()> {
    let Some(text) = text else {
        fs::remove_file(path)?;
        // A folder of drop-ins may have been made for the file; one that holds anything stays.
        let folder = path
            .parent()
            .filter(|folder| folder.extension() == Some("d".as_ref()));
        if let Some(folder) = folder {
            drop(fs::remove_dir(folder));
        }
        return Ok(());
    };
    // A link stays a link: what it leads to is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(folder)?;
    let mut file = Builder::new().prefix(".wasmvm-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    match fs::metadata(&path) {
        Ok(old) => {
            fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
            file.as_file().set_permissions(old.permissions())?;
        }
        Err(_) => file
            .as_file()
            .set_permissions(Permissions::from_mode(MODE))?,
    }
    file.as_file().sync_all()?;
    file.persist(&path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_keeps_its_mode_and_a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "a").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        Changes::default().set(&link, Some("b")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "b");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    }

    #[test]
    fn what_was_changed_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let (file, new) = (dir.path().join("file"), dir.path().join("sub.d/new"));
        fs::write(&file, "a").unwrap();
        let mut changes = Changes::default();
        changes.set(&file, Some("a")).unwrap();
        assert!(changes.is_empty());
        changes.set(&file, None).unwrap();
        changes.set(&new, Some("b")).unwrap();
        assert!(new.exists() && !file.exists());
        changes.undo().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "a");
        assert!(!dir.path().join("sub.d").exists());
    }

    #[test]
    fn a_file_beside_is_found_by_no_pattern_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let beside = beside(&dir.path().join("missing/config.toml"), "a = 1").unwrap();
        let path = beside.path().to_owned();
        assert!(path.exists() && !path.to_string_lossy().ends_with(".toml"));
        drop(beside);
        assert!(!path.exists());
    }
}

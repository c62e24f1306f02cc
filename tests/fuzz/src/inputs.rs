//! Inputs in files.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// One file's input, or those of all files in a folder, in the order of their names.
pub(crate) fn read(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let failed = |err| format!("cannot read {}: {err}", path.display());
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(failed)?;
        let entries = entries.map(|entry| entry.map(|entry| entry.path()));
        paths = entries.collect::<Result<_, _>>().map_err(failed)?;
        paths.sort();
    }
    paths
        .iter()
        .map(|path| fs::read(path).map_err(failed))
        .collect()
}

/// Keeps an input under a name of its own.
pub(crate) fn write(folder: &Path, target: &str, input: &[u8]) -> Result<PathBuf, String> {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = folder.join(format!("{target}-{:016x}", hasher.finish()));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, input))
        .map_err(|err| format!("cannot write {}: {err}", path.display()))?;
    Ok(path)
}

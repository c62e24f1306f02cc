//! Keeps a directory of artifacts below a size: what was not used for longest goes first.
//!
//! A file that a VM maps lives on by its descriptors until the VM's end.

use std::fs::{self, File, FileTimes, Metadata};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Notes that the artifact is used now. That it cannot be noted only makes it go earlier.
pub(super) fn used(file: &File) {
    let now = FileTimes::new().set_modified(SystemTime::now());
    if let Err(error) = file.set_times(now) {
        tracing::debug!(%error, "cannot note the use of an artifact");
    }
}

/// Removes artifacts until `bytes_max` are left or none but `keep`, the one that was just written.
pub(super) fn prune(directory: &Path, bytes_max: u64, keep: &str) {
    let mut artifacts = list(directory);
    let mut bytes: u64 = artifacts.iter().map(|(_, _, length)| length).sum();
    artifacts.sort_by_key(|(_, used, _)| *used);
    for (path, _, length) in artifacts {
        if bytes <= bytes_max {
            return;
        }
        if path.file_name().is_some_and(|name| name == keep) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => tracing::info!(path = %path.display(), length, "an artifact made room"),
            // Another shim may have been first.
            Err(error) => tracing::debug!(path = %path.display(), %error, "cannot remove"),
        }
        bytes = bytes.saturating_sub(length);
    }
}

/// The artifacts; not what is being written.
fn list(directory: &Path) -> Vec<(PathBuf, SystemTime, u64)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let facts = |metadata: Metadata| Some((metadata.modified().ok()?, metadata.len()));
    visible
        .filter_map(|entry| {
            let (used, length) = entry.metadata().ok().and_then(facts)?;
            Some((entry.path(), used, length))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tempfile::tempdir;

    #[test]
    fn what_was_used_last_stays() {
        let directory = tempdir().unwrap();
        let at = |name| directory.path().join(name);
        for (age_s, name) in [(30, "old"), (20, "used"), (10, "new"), (40, ".writing")] {
            fs::write(at(name), [0; 100]).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age_s);
            let times = FileTimes::new().set_modified(time);
            File::options()
                .write(true)
                .open(at(name))
                .unwrap()
                .set_times(times)
                .unwrap();
        }
        prune(directory.path(), 300, "new");
        assert!(at("old").exists());
        used(&File::open(at("old")).unwrap());
        prune(directory.path(), 200, "new");
        assert!(at("old").exists() && !at("used").exists() && at("new").exists());
        prune(directory.path(), 0, "new");
        assert!(!at("old").exists() && at("new").exists() && at(".writing").exists());
    }
}

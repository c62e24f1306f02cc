//! The feature file by which node-feature-discovery labels the node; it needs no right on the cluster.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::Builder;

/// Folder of feature files, as node-feature-discovery's worker reads it.
pub(super) const FOLDER: &str = "/etc/kubernetes/node-feature-discovery/features.d";
/// The feature, and the label that it becomes.
pub(super) const NAME: &str = "feature.node.kubernetes.io/wasmvm";
/// Name of our file.
const FILE: &str = "wasmvm";

/// The feature file cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot change {}", .0.display())]
pub(super) struct FeatureError(PathBuf, #[source] io::Error);

/// Says whether the node can run wasmvm's VMs; returns whether there is a folder to say it in.
pub(super) fn publish(folder: &Path, fit: bool) -> Result<bool, FeatureError> {
    if !folder.is_dir() {
        return Ok(false);
    }
    let path = folder.join(FILE);
    // The worker leaves out files whose name begins with a dot.
    let made = Builder::new().prefix(".wasmvm-").tempfile_in(folder);
    let put = made.and_then(|mut file| {
        writeln!(file, "{NAME}={fit}")?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        file.persist(&path)?;
        Ok(true)
    });
    put.map_err(|error| FeatureError(path, error))
}

/// Takes back what was said.
pub(super) fn withdraw(folder: &Path) -> Result<(), FeatureError> {
    let path = folder.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FeatureError(path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feature_is_one_line_that_is_replaced_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!publish(&dir.path().join("none"), true).unwrap());
        for (fit, line) in [
            (true, "feature.node.kubernetes.io/wasmvm=true\n"),
            (false, "feature.node.kubernetes.io/wasmvm=false\n"),
        ] {
            assert!(publish(dir.path(), fit).unwrap());
            assert_eq!(fs::read_to_string(dir.path().join("wasmvm")).unwrap(), line);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        withdraw(dir.path()).unwrap();
        withdraw(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! `shim_cgroup`: the cgroup that a client wants the shim in, not the task.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Directory where the hierarchy, or with cgroup v1 each of them, is mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// File that takes a process' pid.
const PROCS: &str = "cgroup.procs";

/// Why the shim could not enter its cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimCgroupError {
    /// The path has a `..`, which could lead out of the hierarchy.
    #[error("options: shim_cgroup = {0:?} is refused: '..' is not allowed")]
    Path(String),
    /// The cgroup does not exist, and is not made, as runc's shim does not make its own.
    #[error("options: shim_cgroup = {0:?}: there is no such cgroup")]
    Absent(String),
    /// The kernel refused the move.
    #[error("options: shim_cgroup: cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// Moves a process into the cgroup at `path`, in every hierarchy that has it.
pub(super) fn move_into(path: &str, pid: u32) -> Result<(), ShimCgroupError> {
    move_below(Path::new(CGROUP_ROOT), path, pid)
}

fn move_below(root: &Path, path: &str, pid: u32) -> Result<(), ShimCgroupError> {
    let inner = Path::new(path);
    if inner.components().any(|part| part == Component::ParentDir) {
        return Err(ShimCgroupError::Path(path.to_owned()));
    }
    let inner = inner.strip_prefix("/").unwrap_or(inner);
    let mut found = false;
    for hierarchy in hierarchies(root) {
        let procs = hierarchy.join(inner).join(PROCS);
        if procs.exists() {
            found = true;
            fs::write(&procs, pid.to_string())
                .map_err(|error| ShimCgroupError::Write(procs, error))?;
        }
    }
    if found {
        Ok(())
    } else {
        Err(ShimCgroupError::Absent(path.to_owned()))
    }
}

/// The hierarchies below `root`. Only the unified one has its files at the root itself.
fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if root.join(PROCS).exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten();
    // `cpu` is a link to `cpu,cpuacct`: to move twice changes nothing.
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(root: &Path, path: &str) -> PathBuf {
        let directory = root.join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(PROCS), "").unwrap();
        directory
    }

    #[test]
    fn the_unified_hierarchy_is_one() {
        let root = tempfile::tempdir().unwrap();
        directory(root.path(), "");
        let shim = directory(root.path(), "a/shim");
        move_below(root.path(), "/a/shim", 42).unwrap();
        assert_eq!(fs::read_to_string(shim.join(PROCS)).unwrap(), "42");
        let absent = move_below(root.path(), "/b", 42).unwrap_err();
        assert!(matches!(absent, ShimCgroupError::Absent(_)));
        let outside = move_below(root.path(), "/a/../../b", 42).unwrap_err();
        assert!(matches!(outside, ShimCgroupError::Path(_)));
    }

    #[test]
    fn the_hierarchies_of_v1_are_all_entered() {
        let root = tempfile::tempdir().unwrap();
        let shims = ["cpu/s", "memory/s"].map(|path| directory(root.path(), path));
        directory(root.path(), "pids/other");
        move_below(root.path(), "s", 42).unwrap();
        for shim in shims {
            assert_eq!(fs::read_to_string(shim.join(PROCS)).unwrap(), "42");
        }
    }
}

//! Makes a cgroup's directories and hands controllers down to it.

use std::fs;
use std::io;
use std::path::Path;

use super::directory::Directory;
use super::host::{Kind, Place, root_of};
use super::{CgroupError, read, remove, write};

/// Controllers that are handed down the path in the unified hierarchy, where the kernel has them.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// A parent that another task removes meanwhile is made again this often.
const CREATE_TRIES_MAX: usize = 64;

/// Makes the directories of a place, without limits.
pub(super) fn directories(place: &Place) -> Result<Vec<Directory>, CgroupError> {
    let all = place.0.iter();
    all.map(|(path, kind)| {
        let root = root_of(path)?;
        make(&root, path)?;
        // From here on the cgroup itself keeps its parents.
        let parents = parents(&root, path);
        match kind {
            Kind::Unified => parents.into_iter().try_for_each(delegate)?,
            Kind::Legacy(names) if names.iter().any(|name| name == "cpuset") => {
                let below = parents.into_iter().skip(1).chain([path.as_path()]);
                below.into_iter().try_for_each(inherit_cpuset)?;
            }
            Kind::Legacy(_) => {}
        }
        Directory::open(path, kind.clone())
    })
    .collect()
}

/// Makes what is missing of the path. A parent may vanish with its last task meanwhile.
fn make(root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut tries = 1;
    loop {
        match try_make(root, path) {
            Err(CgroupError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && tries < CREATE_TRIES_MAX =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

fn try_make(root: &Path, path: &Path) -> Result<(), CgroupError> {
    for parent in parents(root, path) {
        make_one(parent)?;
    }
    if !make_one(path)? {
        remove::claim(path)?;
        make_one(path)?;
    }
    Ok(())
}

/// From the root down, without `path` itself.
fn parents<'a>(root: &Path, path: &'a Path) -> Vec<&'a Path> {
    let above = path.ancestors().skip(1);
    let mut parents: Vec<&Path> = above
        .take_while(|parent| parent.starts_with(root))
        .collect();
    parents.reverse();
    parents
}

/// Whether it is new.
fn make_one(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(err) => Err(CgroupError::at(path, "make", err)),
    }
}

/// Hands the controllers down. One that cannot be handed down is missed later, if a limit needs it.
fn delegate(path: &Path) -> Result<(), CgroupError> {
    let available = read(path, "cgroup.controllers")?;
    let handed = read(path, "cgroup.subtree_control")?;
    for controller in CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|name| name == controller);
        if has(&available)
            && !has(&handed)
            && let Err(err) = write(path, "cgroup.subtree_control", &format!("+{controller}"))
        {
            tracing::debug!(controller, ?path, ?err, "controller not handed down");
        }
    }
    Ok(())
}

/// A new cgroup of v1's cpuset has neither processors nor memory nodes, and no process may enter it
/// before it has (cgroup-v1/cpusets.rst): it gets its parent's.
fn inherit_cpuset(path: &Path) -> Result<(), CgroupError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(path, file)?.trim().is_empty() {
            write(path, file, read(parent, file)?.trim())?;
        }
    }
    Ok(())
}

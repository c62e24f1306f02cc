//! Makes a cgroup's directories, or joins existing ones, and hands controllers down to them.
//!
//! ```text
//! journal: these paths do not exist ─► mkdir each, mark it ─► open, lock ─► journal: made, joined, by inode
//! ```
//!
//! A directory that exists is joined when it is empty: an operator has prepared it. A directory that a task of
//! ours has left after a crash bears our mark, and is made anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::directory::{Directory, Origin, is_busy};
use super::host::{Kind, Place, root_of};
use super::{Cgroup, CgroupError, change, read, write};
use crate::journal::{DirectoryIdentity, Journal, Step};

/// Controllers that are handed down the path in the unified hierarchy, where the kernel has them: all that
/// have limits, as `linux.resources.unified` may name a file of any.
const CONTROLLERS: [&str; 8] = [
    "cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma",
];
/// Most times that a directory is made again, because another task has removed it meanwhile.
const CREATE_TRIES_MAX: usize = 64;
/// The extended attribute by which a directory that wasmvm has made is known, parents included: any later
/// task may remove an empty directory that has the mark, and none that has not.
const MARK: &str = "trusted.wasmvm";

/// Makes or joins the directories of a place, without limits. Directories that were made are in the journal in any
/// case.
pub(super) fn directories(place: &Place, journal: &Journal) -> Result<Vec<Directory>, CgroupError> {
    let missing = missing(place)?;
    if !missing.is_empty() {
        journal.record(&Step::CgroupWanted { paths: missing })?;
    }
    let mut directories = Vec::new();
    let result = place.0.iter().try_for_each(|(path, kind)| {
        directories.push(make_or_join(&root_of(path)?, path, kind)?);
        Ok(())
    });
    note(&directories, journal)?;
    result.map(|()| directories)
}

/// Directories on the paths that do not exist now, from the roots down.
fn missing(place: &Place) -> Result<Vec<PathBuf>, CgroupError> {
    let mut missing = Vec::new();
    for path in place.paths() {
        let root = root_of(path)?;
        let all = parents(&root, path).into_iter().chain([path]);
        missing.extend(all.filter(|path| !path.exists()).map(Path::to_owned));
    }
    Ok(missing)
}

fn note(directories: &[Directory], journal: &Journal) -> Result<(), CgroupError> {
    let of = |origin| -> Result<Vec<DirectoryIdentity>, CgroupError> {
        let all = directories.iter();
        all.filter(|directory| directory.origin == origin)
            .map(Directory::identity)
            .collect()
    };
    journal.record(&Step::CgroupHeld {
        made: of(Origin::Made)?,
        joined: of(Origin::Joined)?,
    })?;
    Ok(())
}

/// Makes or joins the directory, and makes missing parents. A parent that exists may be removed with its last task
/// meanwhile.
fn make_or_join(root: &Path, path: &Path, kind: &Kind) -> Result<Directory, CgroupError> {
    let mut tries = 1;
    loop {
        match try_make_or_join(root, path, kind) {
            Err(CgroupError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && tries < CREATE_TRIES_MAX =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

fn try_make_or_join(root: &Path, path: &Path, kind: &Kind) -> Result<Directory, CgroupError> {
    for parent in parents(root, path) {
        make_one(parent)?;
    }
    if make_one(path)? {
        return Directory::open(path, kind.clone(), Origin::Made);
    }
    let found = Directory::open(path, kind.clone(), Origin::Joined)?;
    let in_use = || CgroupError::InUse {
        path: path.to_owned(),
    };
    if !is_empty(&found)? {
        return Err(in_use());
    }
    if !is_marked(path) {
        return Ok(found);
    }
    match fs::remove_dir(path) {
        Err(err) if is_busy(&err) => Err(in_use()),
        Err(err) => Err(CgroupError::at(path, "remove the left-over", err)),
        // Another task has made the directory again, if it exists.
        Ok(()) if !make_one(path)? => Err(in_use()),
        Ok(()) => Directory::open(path, kind.clone(), Origin::Made),
    }
}

/// Whether a directory has neither processes nor cgroups of its own.
fn is_empty(directory: &Directory) -> Result<bool, CgroupError> {
    let path = &directory.path;
    let procs = directory
        .read("cgroup.procs")
        .map_err(|err| CgroupError::at(path, "read cgroup.procs of", err))?;
    let mut entries = fs::read_dir(path).map_err(|err| CgroupError::at(path, "list", err))?;
    let has_cgroups = entries.any(|entry| {
        let kind = entry.and_then(|entry| entry.file_type());
        kind.is_ok_and(|kind| kind.is_dir())
    });
    Ok(procs.trim().is_empty() && !has_cgroups)
}

/// The directories above `path`, from the root down, without `path` itself.
pub(super) fn parents<'a>(root: &Path, path: &'a Path) -> Vec<&'a Path> {
    let above = path.ancestors().skip(1);
    let mut parents: Vec<&Path> = above
        .take_while(|parent| parent.starts_with(root))
        .collect();
    parents.reverse();
    parents
}

/// Makes a directory and marks it; false when it exists already.
fn make_one(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => {
            if let Err(errno) = setxattr(path, MARK, b"1", XattrFlags::empty()) {
                tracing::debug!(?path, %errno, "a cgroup without a mark stays when it is empty");
            }
            Ok(true)
        }
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(err) => Err(CgroupError::at(path, "make", err)),
    }
}

/// Whether wasmvm has made the directory.
pub(super) fn is_marked(path: &Path) -> bool {
    getxattr(path, MARK, &mut [0_u8; 1][..]).is_ok()
}

/// Hands controllers down to the directories, from the roots.
pub(super) fn hand_down(cgroup: &Cgroup) -> Result<(), CgroupError> {
    for directory in &cgroup.directories {
        let path = &directory.path;
        let parents = parents(&root_of(path)?, path);
        match &directory.kind {
            Kind::Unified => parents.into_iter().try_for_each(delegate)?,
            Kind::Legacy(names) if names.iter().any(|name| name == "cpuset") => {
                parents.into_iter().skip(1).try_for_each(inherit_cpuset)?;
                inherit_own_cpuset(cgroup, directory)?;
            }
            Kind::Legacy(_) => {}
        }
    }
    Ok(())
}

/// Hands the controllers down. A controller that cannot be handed down is missed later, if a limit needs it.
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

/// Files that a new cgroup of v1's cpuset has empty, and that need a value before a process may enter
/// (cgroup-v1/cpusets.rst).
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// A directory of v1's cpuset that has neither processors nor memory nodes gets its parent's.
fn inherit_cpuset(path: &Path) -> Result<(), CgroupError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    for file in CPUSET_FILES {
        if read(path, file)?.trim().is_empty() {
            write(path, file, read(parent, file)?.trim())?;
        }
    }
    Ok(())
}

/// Does the same as [`inherit_cpuset`] for the cgroup's own directory, whose first values are recorded.
fn inherit_own_cpuset(cgroup: &Cgroup, directory: &Directory) -> Result<(), CgroupError> {
    for file in CPUSET_FILES {
        let before = directory.read(file).unwrap_or_default();
        if before.trim().is_empty() {
            change::keep(cgroup, directory, file, "")?;
        }
    }
    inherit_cpuset(&directory.path)
}

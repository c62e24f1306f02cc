//! Undoes a task's changes to a cgroup, and only those: directories that the task made, known by their inodes,
//! are removed with all processes and cgroups in them; directories that it joined get their limits back, and stay. A
//! path that is part of no hierarchy is never touched, whatever a journal says.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::CgroupError;
use super::directory::{inode, is_busy, open, open_file, read_file, write_file};
use super::host::{Version, is_of_hierarchy, root_of, version_of};
use super::make::{is_marked, parents};
use crate::journal::DirectoryIdentity;
use crate::sys::watch::poll_until;

/// Removes a directory that the task has made, if it exists: kills the processes in it, waits for their exits
/// at most `limit`, and removes the directory, with the parents that wasmvm has made and that are empty
/// now. Another directory of the same path is left alone.
///
/// # Errors
/// [`CgroupError`]; `Busy` when processes outlive the wait.
pub(crate) fn remove(made: &DirectoryIdentity, limit: Duration) -> Result<(), CgroupError> {
    let path = &made.path;
    if let Some(dir) = find(made)? {
        remove_open(&dir, path, limit)?;
    }
    let root = root_of(path)?;
    for parent in parents(&root, path).into_iter().skip(1).rev() {
        // A parent with other children stays, rightly.
        if !is_marked(parent) || fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

/// Removes the directory of this path, with all processes and cgroups in it: journals of earlier versions name
/// directories by their paths alone.
///
/// # Errors
/// Those of [`remove`].
pub(crate) fn remove_by_path(path: &Path, limit: Duration) -> Result<(), CgroupError> {
    root_of(path)?;
    match open(path) {
        Ok(dir) if is_of_hierarchy(&dir) => remove_open(&dir, path, limit),
        Ok(_) => Err(CgroupError::Version {
            path: path.to_owned(),
        }),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(CgroupError::at(path, "open", err)),
    }
}

/// Removes a directory that was about to be made, if it is empty. `noted` says that the journal has the outcome of
/// the making: then the directory is ours only if it bears our mark.
pub(crate) fn remove_wanted(path: &Path, noted: bool) {
    if version_of(path).is_some() && (!noted || is_marked(path)) {
        // The directory was not made, or is not empty, and so another's.
        let _ = fs::remove_dir(path);
    }
}

/// Puts a limit of a joined directory back, unless the directory was removed. A value that the kernel does not
/// take any more is logged: no later try could succeed.
///
/// # Errors
/// [`CgroupError`], when the directory cannot be opened.
pub(crate) fn restore(
    joined: &DirectoryIdentity,
    file: &str,
    value: &str,
) -> Result<(), CgroupError> {
    let Some(dir) = find(joined)? else {
        return Ok(());
    };
    // A file with a line for each device takes one at a time.
    let lines = if value.is_empty() {
        vec![""]
    } else {
        value.lines().collect()
    };
    for line in lines {
        if let Err(error) = write_file(&dir, file, line) {
            tracing::warn!(path = ?joined.path, file, line, %error, "cannot put a limit back");
        }
    }
    Ok(())
}

/// Opens a directory of the journal; `None` when it was removed, or when its path is another directory's now.
fn find(wanted: &DirectoryIdentity) -> Result<Option<File>, CgroupError> {
    let path = &wanted.path;
    let found = match open(path) {
        // A directory of another file system may have the same number.
        Ok(dir) if !is_of_hierarchy(&dir) => Ok(None),
        Ok(dir) => inode(&dir).map(|inode| (inode == wanted.inode).then_some(dir)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    };
    found.map_err(|err| CgroupError::at(path, "open", err))
}

fn remove_open(dir: &File, path: &Path, limit: Duration) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(err) if is_busy(&err) => {
            // A daemon and a `delete` that containerd runs beside it may both be removing it.
            match empty_and_remove(dir, path, limit) {
                Err(err) if path.exists() => Err(err),
                _ => Ok(()),
            }
        }
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::at(path, "remove", err))
        }
        _ => Ok(()),
    }
}

fn empty_and_remove(dir: &File, path: &Path, limit: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + limit;
    let busy = || CgroupError::Busy {
        path: path.to_owned(),
        waited: limit,
    };
    let emptied = match version_of(path) {
        Some(Version::V1) => kill_each(dir, path, deadline)?,
        _ => {
            write_file(dir, "cgroup.kill", "1")
                .map_err(|err| CgroupError::at(path, "kill what is in", err))?;
            wait_until_empty(dir, path, deadline)?
        }
    };
    if !emptied {
        return Err(busy());
    }
    fs::remove_dir(path).map_err(|err| match is_busy(&err) {
        true => busy(),
        false => CgroupError::at(path, "remove", err),
    })
}

/// Version 1 has neither `cgroup.kill` nor an event: each process is killed and waited for, until there
/// is none. Returns whether the cgroup is empty by the deadline.
fn kill_each(dir: &File, path: &Path, deadline: Instant) -> Result<bool, CgroupError> {
    loop {
        let procs = read_file(dir, "cgroup.procs")
            .map_err(|err| CgroupError::at(path, "read cgroup.procs of", err))?;
        // Processes of an outer PID namespace show as 0.
        let pids = procs.lines().filter_map(|line| line.parse().ok());
        let pids: Vec<Pid> = pids.filter_map(Pid::from_raw).collect();
        if pids.is_empty() {
            return Ok(true);
        }
        for pid in pids {
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            // The process may have exited by itself.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            if !wait_for(&pidfd, PollFlags::IN, deadline, path)? {
                return Ok(false);
            }
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Waits for the last exit. `cgroup.events` raises POLLPRI when it changes (cgroup-v2.rst, "Populated
/// Notification").
fn wait_until_empty(dir: &File, path: &Path, deadline: Instant) -> Result<bool, CgroupError> {
    let events = open_file(dir, "cgroup.events", OFlags::RDONLY)
        .map_err(|err| CgroupError::at(path, "open cgroup.events of", err))?;
    while is_populated(&events, path)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        wait_for(&events, PollFlags::PRI, deadline, path)?;
    }
    Ok(true)
}

/// Whether the event came before the deadline.
fn wait_for(
    fd: &impl AsFd,
    event: PollFlags,
    deadline: Instant,
    path: &Path,
) -> Result<bool, CgroupError> {
    poll_until(&mut [PollFd::new(fd, event)], deadline)
        .map_err(|err| CgroupError::at(path, "wait for the end of", err))
}

fn is_populated(events: &File, path: &Path) -> Result<bool, CgroupError> {
    let mut buffer = [0; 256];
    let len = rustix::io::pread(events, &mut buffer, 0)
        .map_err(|errno| CgroupError::at(path, "read cgroup.events of", errno.into()))?;
    let text = String::from_utf8_lossy(&buffer[..len]);
    Ok(text.lines().any(|line| line == "populated 1"))
}

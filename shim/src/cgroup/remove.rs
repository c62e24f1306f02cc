//! Removes a cgroup's directory, with all that lives in it.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

use super::host::{Version, root_of, version_of};
use super::{CgroupError, read, write};

/// Makes sure that the cgroup at `path` is nobody's: an empty one, left over from a crash, is removed.
/// To be called before [`remove`] is promised for it, as that kills whoever lives there.
///
/// # Errors
/// [`CgroupError::InUse`] when it has processes or cgroups of its own.
pub(super) fn claim(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) if is_busy(&err) => Err(CgroupError::InUse {
            path: path.to_owned(),
        }),
        Err(err) => Err(CgroupError::at(path, "remove the left-over", err)),
    }
}

/// Removes the directory of a cgroup at `path`, if it is there: kills what is in it, waits for the end
/// of that at most `patience`, and removes the directory; and its parent, when that is a directory
/// directly below the root (containerd's namespace) and empty now.
///
/// # Errors
/// [`CgroupError`]; `Busy` when processes outlive the wait.
pub fn remove(path: &Path, patience: Duration) -> Result<(), CgroupError> {
    let root = root_of(path)?;
    match fs::remove_dir(path) {
        Err(err) if is_busy(&err) => {
            // A daemon and a `delete` that containerd runs beside it may both be at it.
            if let Err(err) = empty_and_remove(path, patience)
                && path.exists()
            {
                return Err(err);
            }
        }
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(CgroupError::at(path, "remove", err));
        }
        _ => {}
    }
    if let Some(parent) = path
        .parent()
        .filter(|parent| parent.parent() == Some(&root))
    {
        // Siblings, processes or another owner keep it, rightly.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn empty_and_remove(path: &Path, patience: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + patience;
    let busy = || CgroupError::Busy {
        path: path.to_owned(),
        waited: patience,
    };
    let emptied = match version_of(path) {
        Some(Version::V1) => kill_each(path, deadline)?,
        _ => {
            write(path, "cgroup.kill", "1")?;
            wait_until_empty(path, deadline)?
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

fn is_busy(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Version 1 has neither `cgroup.kill` nor an event: each process is killed and waited for, until there
/// is none. Whether it is empty by the deadline.
fn kill_each(path: &Path, deadline: Instant) -> Result<bool, CgroupError> {
    loop {
        let procs = read(path, "cgroup.procs")?;
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
            // It may have ended by itself.
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

/// `cgroup.events` raises POLLPRI when it changes (cgroup-v2.rst, "Populated Notification").
fn wait_until_empty(path: &Path, deadline: Instant) -> Result<bool, CgroupError> {
    let file = path.join("cgroup.events");
    let events = File::open(&file).map_err(|err| CgroupError::at(&file, "open", err))?;
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
    fd: &impl std::os::fd::AsFd,
    event: PollFlags,
    deadline: Instant,
    path: &Path,
) -> Result<bool, CgroupError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(fd, event)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(CgroupError::at(path, "wait for the end of", errno.into())),
        }
    }
}

fn is_populated(events: &File, path: &Path) -> Result<bool, CgroupError> {
    let mut buffer = [0; 256];
    let len = rustix::io::pread(events, &mut buffer, 0)
        .map_err(|errno| CgroupError::at(path, "read cgroup.events of", errno.into()))?;
    let text = String::from_utf8_lossy(&buffer[..len]);
    Ok(text.lines().any(|line| line == "populated 1"))
}

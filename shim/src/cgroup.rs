//! The task's cgroup: made from the spec, entered by the VMM at its birth, removed at Delete.
//!
//! cgroup v2 only, mounted at `/sys/fs/cgroup`. Only the VMM lives in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

pub use self::error::CgroupError;
pub use self::limits::CgroupLimits;
pub use self::path::{cgroup_path, mounted_root};

mod error;
mod limits;
mod path;
#[cfg(test)]
mod tests;

/// Controllers that are handed down the path, where the kernel has them.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// A parent that another task removes meanwhile is made again this often.
const CREATE_TRIES_MAX: usize = 64;

/// A cgroup that exists.
#[derive(Debug)]
pub struct Cgroup {
    dir: File,
}

impl Cgroup {
    /// Makes the cgroup at `path` (from [`cgroup_path`]) with its limits. An empty one left over from a
    /// crash is replaced.
    ///
    /// # Errors
    /// [`CgroupError`]; then nothing of it is left.
    pub fn create(path: &Path, limits: &CgroupLimits) -> Result<Self, CgroupError> {
        let root = path::root_of(path)?;
        create_directories(&root, path)?;
        Self::set_up(&root, path, limits).inspect_err(|_| remove_empty(path))
    }

    fn set_up(root: &Path, path: &Path, limits: &CgroupLimits) -> Result<Self, CgroupError> {
        // From here on the cgroup itself keeps its parents.
        parents(root, path).into_iter().try_for_each(delegate)?;
        limits.write(path)?;
        let dir = File::open(path).map_err(|source| CgroupError::at(path, "open", source))?;
        Ok(Self { dir })
    }
}

impl AsFd for Cgroup {
    /// The directory, for `clone3(CLONE_INTO_CGROUP)`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Makes sure that the cgroup at `path` is nobody's: an empty one, left over from a crash, is removed.
/// To be called before [`remove`] is promised for it, as that kills whoever lives there.
///
/// # Errors
/// [`CgroupError::InUse`] when it has processes or cgroups of its own.
pub fn claim(path: &Path) -> Result<(), CgroupError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) if is_busy(&err) => Err(CgroupError::InUse {
            path: path.to_owned(),
        }),
        Err(err) => Err(CgroupError::at(path, "remove the left-over", err)),
    }
}

/// Removes the cgroup at `path`, if it is there: kills what is in it, waits for the end of that at most
/// `patience`, and removes the directory; and its parent, when that is a directory directly below the
/// root (containerd's namespace) and empty now.
///
/// # Errors
/// [`CgroupError`]; `Busy` when processes outlive the wait.
pub fn remove(path: &Path, patience: Duration) -> Result<(), CgroupError> {
    let root = path::root_of(path)?;
    match std::fs::remove_dir(path) {
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
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}

fn empty_and_remove(path: &Path, patience: Duration) -> Result<(), CgroupError> {
    kill(path)?;
    wait_until_empty(path, patience)?;
    std::fs::remove_dir(path).map_err(|err| CgroupError::at(path, "remove", err))
}

fn is_busy(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
    )
}

fn kill(path: &Path) -> Result<(), CgroupError> {
    write(path, "cgroup.kill", "1")
}

/// `cgroup.events` raises POLLPRI when it changes (cgroup-v2.rst, "Populated Notification").
fn wait_until_empty(path: &Path, patience: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + patience;
    let file = path.join("cgroup.events");
    let events = File::open(&file).map_err(|err| CgroupError::at(&file, "open", err))?;
    while is_populated(&events, path)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CgroupError::Busy {
                path: path.to_owned(),
                waited: patience,
            });
        }
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(CgroupError::at(&file, "wait for", errno.into())),
        }
    }
    Ok(())
}

fn is_populated(events: &File, path: &Path) -> Result<bool, CgroupError> {
    let mut buffer = [0; 256];
    let len = rustix::io::pread(events, &mut buffer, 0)
        .map_err(|errno| CgroupError::at(path, "read cgroup.events of", errno.into()))?;
    let text = String::from_utf8_lossy(&buffer[..len]);
    Ok(text.lines().any(|line| line == "populated 1"))
}

/// Makes what is missing of the path. A parent may vanish with its last task meanwhile.
fn create_directories(root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut tries = 1;
    loop {
        match try_create_directories(root, path) {
            Err(CgroupError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && tries < CREATE_TRIES_MAX =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

fn try_create_directories(root: &Path, path: &Path) -> Result<(), CgroupError> {
    for parent in parents(root, path) {
        create_one(parent)?;
    }
    if !create_one(path)? {
        claim(path)?;
        create_one(path)?;
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
fn create_one(path: &Path) -> Result<bool, CgroupError> {
    match std::fs::create_dir(path) {
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

/// Undoes a failed creation as far as it is empty.
fn remove_empty(path: &Path) {
    if let Err(err) = remove(path, Duration::ZERO) {
        tracing::warn!(?path, ?err, "cgroup left behind");
    }
}

fn read(path: &Path, name: &str) -> Result<String, CgroupError> {
    let file = path.join(name);
    std::fs::read_to_string(&file).map_err(|source| CgroupError::at(&file, "read", source))
}

fn write(path: &Path, name: &str, value: &str) -> Result<(), CgroupError> {
    let file = path.join(name);
    // Not created when absent: a cgroup's files are the kernel's.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| CgroupError::Write {
            file,
            value: value.to_owned(),
            source,
        })
}

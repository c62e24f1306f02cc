//! The guest's set-up for a task: clock, host name, the file tree and its devices.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, makedev};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::time::{ClockId, Timespec};
use wasmvm_protocol::agent::Program;
use wasmvm_protocol::error_chain;

use crate::log::{self, Level};

/// Where the task's file tree is mounted.
pub const TASK_ROOT: &str = "/task";
/// The virtio-fs tag of the task's file tree.
pub const TASK_TAG: &str = "root";

/// Where the task's device nodes are made: virtio-fs mounts hold none that work.
const TASK_NODES: &str = "/dev/task";
/// Where the task's proc is mounted before it is given.
const TASK_PROC: &str = "/dev/task-proc";
/// Where the empty file and the empty directory lie that hide others.
const TASK_MASKS: &str = "/dev/task-masks";
/// Name, major and minor of the task's devices (kernel `Documentation/admin-guide/devices.txt`).
pub const TASK_DEVICES: [Device; 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// `statfs(2)` of a file that the host serves (`FUSE_SUPER_MAGIC`, `linux/magic.h`).
const FUSE_MAGIC: i64 = 0x6573_5546;

/// Name, major and minor number of a device.
pub type Device = (&'static str, u32, u32);

/// A step of the guest's set-up that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct GuestError {
    action: String,
    #[source]
    source: io::Error,
}

/// Names the action that failed.
pub fn doing<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> GuestError {
    let action = action.into();
    |source| GuestError {
        action,
        source: source.into(),
    }
}

/// Sets the guest up for a task's first program: wall clock, host name, and once the file tree.
///
/// # Errors
/// [`GuestError`], naming the step.
pub fn prepare(program: &Program, mounted: &AtomicBool) -> Result<(), GuestError> {
    if program.wall_clock_ns != 0 {
        set_clock(program.wall_clock_ns)?;
    }
    if !program.hostname.is_empty() {
        rustix::system::sethostname(program.hostname.as_bytes())
            .map_err(doing(format!("set the host name {:?}", program.hostname)))?;
    }
    if mounted.load(Ordering::Relaxed) {
        return Ok(());
    }
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    mount(TASK_TAG, TASK_ROOT, "virtiofs", safe, None)?;
    mounted.store(true, Ordering::Relaxed);
    if program.guest_dev || !program.devices.is_empty() {
        make_nodes()?;
    }
    if program.guest_dev {
        for (name, ..) in TASK_DEVICES {
            give(&format!("{TASK_NODES}/{name}"), &format!("dev/{name}"))?;
        }
    }
    for mount in &program.devices {
        // Unlike those of /dev: the task was promised that what lies below is not to be seen.
        let node = format!("{TASK_NODES}/{}", mount.device);
        give_below(
            task_root()?.as_fd(),
            &node,
            mount.destination.trim_start_matches('/'),
        )?;
    }
    if program.guest_proc {
        give_proc()?;
    }
    if !program.masked_paths.is_empty() {
        mask(task_root()?.as_fd(), TASK_MASKS, &program.masked_paths)?;
    }
    Ok(())
}

/// Sets the wall clock.
///
/// # Errors
/// [`GuestError`] for a time that does not exist.
pub fn set_clock(wall_clock_ns: u64) -> Result<(), GuestError> {
    let now = Duration::from_nanos(wall_clock_ns);
    let time = Timespec::try_from(now)
        .map_err(|_| doing("set the clock")(io::Error::from(io::ErrorKind::InvalidInput)))?;
    rustix::time::clock_settime(ClockId::Realtime, time).map_err(doing("set the clock"))
}

/// Makes the task's devices, to be mounted onto files of their names in the tree's /dev and onto others.
fn make_nodes() -> Result<(), GuestError> {
    rustix::fs::mkdir(TASK_NODES, Mode::from_bits_truncate(0o755))
        .map_err(doing(format!("make {TASK_NODES}")))?;
    let umask = rustix::process::umask(Mode::empty());
    let made = make_devices(TASK_NODES, &TASK_DEVICES, 0o666);
    rustix::process::umask(umask);
    made
}

/// Puts the guest's proc onto the tree's `/proc`: read-only, and of the processes a program sees itself alone.
/// So it can learn what WASI does not tell, its user above all.
fn give_proc() -> Result<(), GuestError> {
    rustix::fs::mkdir(TASK_PROC, Mode::from_bits_truncate(0o755))
        .map_err(doing(format!("make {TASK_PROC}")))?;
    let safe = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", TASK_PROC, "proc", safe, Some(c"hidepid=ptraceable"))?;
    give(TASK_PROC, "proc")
}

/// Hides what lies at `paths` of the tree and is the guest's own, by an empty file or directory in `masks`, a
/// directory to be made. The host has hidden what comes from it; what is not there is hidden enough, as under
/// runc.
fn mask(root: BorrowedFd<'_>, masks: &str, paths: &[String]) -> Result<(), GuestError> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(find_own(root, path)?.map(|point| (path, point)));
    }
    if found.is_empty() {
        return Ok(());
    }
    make_masks(masks)?;
    for (path, point) in found {
        let step = || doing(format!("mask {path}"));
        let mode = rustix::fs::fstat(&point).map_err(step())?.st_mode;
        let over = match FileType::from_raw_mode(mode) {
            FileType::Directory => format!("{masks}/directory"),
            _ => format!("{masks}/file"),
        };
        give_onto(point.as_fd(), &over).map_err(step())?;
    }
    Ok(())
}

/// The file that the path leads to inside the tree, unless there is none or it is the host's.
fn find_own(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>, GuestError> {
    let step = || doing(format!("look at the masked path {path}"));
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        found => found.map_err(step())?,
    };
    let kind = rustix::fs::fstatfs(&found).map_err(step())?.f_type;
    Ok((kind != FUSE_MAGIC).then_some(found))
}

/// A read-only file system with an empty file and an empty directory.
fn make_masks(masks: &str) -> Result<(), GuestError> {
    let step = || doing("make what hides masked paths");
    rustix::fs::mkdir(masks, Mode::from_raw_mode(0o755)).map_err(step())?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = Some(c"size=4k,nr_inodes=8,mode=755");
    mount("tmpfs", masks, "tmpfs", safe, options)?;
    let flags = OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(format!("{masks}/file"), flags, Mode::from_raw_mode(0o444)).map_err(step())?;
    let directory = format!("{masks}/directory");
    rustix::fs::mkdir(directory, Mode::from_raw_mode(0o555)).map_err(step())?;
    rustix::mount::mount_remount(masks, safe | MountFlags::RDONLY, c"").map_err(step())
}

fn open_directory(path: &str) -> Result<OwnedFd, GuestError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(doing(format!("open {path}")))
}

/// Mounts what lies at `path` in the guest onto `point` of the task's tree. A tree without that point can
/// be run all the same.
fn give(path: &str, point: &str) -> Result<(), GuestError> {
    if let Err(error) = give_below(task_root()?.as_fd(), path, point) {
        log::line(Level::Warning, &error_chain(&error));
    }
    Ok(())
}

fn task_root() -> Result<OwnedFd, GuestError> {
    open_directory(TASK_ROOT)
}

fn give_below(root: BorrowedFd<'_>, path: &str, point: &str) -> Result<(), GuestError> {
    let step = || doing(format!("mount the guest's own onto the tree's /{point}"));
    // The tree is the image's: its symbolic links lead nowhere but into itself.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let point = rustix::fs::openat2(root, point, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .map_err(step())?;
    give_onto(point.as_fd(), path).map_err(step())
}

fn give_onto(point: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let cloned = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own = rustix::mount::open_tree(CWD, path, cloned)?;
    let both_empty =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&own, c"", point, c"", both_empty)
}

/// Makes character devices.
///
/// # Errors
/// [`GuestError`], naming the first that could not be made.
pub fn make_devices(directory: &str, devices: &[Device], mode: u32) -> Result<(), GuestError> {
    for &(name, major, minor) in devices {
        let path = format!("{directory}/{name}");
        rustix::fs::mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_bits_truncate(mode),
            makedev(major, minor),
        )
        .map_err(doing(format!("make {path}")))?;
    }
    Ok(())
}

/// Mounts a file system.
///
/// # Errors
/// [`GuestError`], naming kind, source and target.
pub fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&std::ffi::CStr>,
) -> Result<(), GuestError> {
    rustix::mount::mount(source, target, kind, flags, data)
        .map_err(doing(format!("mount {kind} {source} on {target}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    /// Needs root. The mounts are those of a thread of its own, and end with it.
    #[test]
    #[allow(unsafe_code, reason = "unshare(2)")]
    fn masked_paths_of_the_guests_own_show_nothing() {
        let test = || {
            // SAFETY: descriptors stay shared, nothing else of this thread is used by others.
            unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join(name);
            fs::create_dir(at("proc")).unwrap();
            let path = |name| at(name).to_str().unwrap().to_owned();
            mount("proc", &path("proc"), "proc", MountFlags::RDONLY, None).unwrap();
            let read = |name: &str| fs::read_to_string(at(name)).unwrap();
            assert!(!read("proc/version").is_empty());
            let paths = [
                "/proc/version",
                "/proc/sys",
                "/proc/no-such-file",
                "/proc/version/x",
            ];
            let paths = paths.map(str::to_owned);
            let tree = open_directory(&path("")).unwrap();
            mask(tree.as_fd(), &path("masks"), &paths).unwrap();
            assert_eq!(read("proc/version"), "");
            assert_eq!(fs::read_dir(at("proc/sys")).unwrap().count(), 0);
            let write = |name: &str| fs::write(at(name), "x").unwrap_err().kind();
            assert_eq!(write("proc/version"), io::ErrorKind::ReadOnlyFilesystem);
            assert_eq!(write("proc/sys/x"), io::ErrorKind::ReadOnlyFilesystem);
            assert!(Path::new(&at("proc/uptime")).exists());
        };
        std::thread::scope(|scope| scope.spawn(test).join()).unwrap();
    }
}

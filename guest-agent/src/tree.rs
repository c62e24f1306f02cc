//! The guest's set-up for a task: clock, host name, the file tree and its devices.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, makedev};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::time::{ClockId, Timespec};
use wasmvm_protocol::agent::Program;

use crate::log::{self, Level};

/// Where the task's file tree is mounted.
pub const TASK_ROOT: &str = "/task";
/// The virtio-fs tag of the task's file tree.
pub const TASK_TAG: &str = "root";

/// Where the task's device nodes are made: virtio-fs mounts hold none that work.
const TASK_NODES: &str = "/dev/task";
/// Where the task's proc is mounted before it is given.
const TASK_PROC: &str = "/dev/task-proc";
/// Name, major and minor of the task's devices (kernel `Documentation/admin-guide/devices.txt`).
pub const TASK_DEVICES: [Device; 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// Name, major, minor.
pub type Device = (&'static str, u32, u32);

/// What the guest could not do for us.
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

/// Mounts what lies at `path` in the guest onto `point` of the task's tree. A tree without that point can
/// be run all the same.
fn give(path: &str, point: &str) -> Result<(), GuestError> {
    if let Err(error) = give_below(task_root()?.as_fd(), path, point) {
        log::line(Level::Warning, &log::chain(&error));
    }
    Ok(())
}

fn task_root() -> Result<OwnedFd, GuestError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(TASK_ROOT, flags, Mode::empty()).map_err(doing(format!("open {TASK_ROOT}")))
}

fn give_below(root: BorrowedFd<'_>, path: &str, point: &str) -> Result<(), GuestError> {
    let step = || doing(format!("mount the guest's own onto the tree's /{point}"));
    // The tree is the image's: its symbolic links lead nowhere but into itself.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let point = rustix::fs::openat2(root, point, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .map_err(step())?;
    let cloned = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own = rustix::mount::open_tree(CWD, path, cloned).map_err(step())?;
    let both_empty =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&own, c"", &point, c"", both_empty).map_err(step())
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

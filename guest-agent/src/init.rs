//! PID 1: from the kernel's hand-over to the ready announcement, and the guest's set-up for a task.
//!
//! The order matters: nothing can be said before `/dev/kmsg` exists, and the host connects as soon as
//! it hears of us, so every port listens before that.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev};
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};
use rustix::time::{ClockId, Timespec};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use wasmvm_protocol::agent::Program;
use wasmvm_protocol::agent::containerd::shim_async::create_task;
use wasmvm_protocol::ports::{AGENT_PORT, READY_PORT, STREAM_PORT};
use wasmvm_protocol::slot::SLOT_ADDRESS;

use crate::log::{self, Level};
use crate::service::TaskService;
use crate::streams::{self, Streams};
use crate::supervisor::{Site, Supervisor};

/// Where the task's file tree is mounted.
pub const TASK_ROOT: &str = "/task";
/// The virtio-fs tag of the task's file tree.
pub const TASK_TAG: &str = "root";
/// Bytes a stream may hold in the guest; the kernel's default is 256 KiB (`af_vsock.c`).
pub const STREAM_BUFFER_BYTES: u64 = 64 << 10;
/// Socket option of `AF_VSOCK` (kernel `linux/vm_sockets.h`).
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
/// How long the ready announcement may take; the VMM resets it at once.
const READY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Name, major and minor of the task's devices (kernel `Documentation/admin-guide/devices.txt`).
const TASK_DEVICES: [(&str, u32, u32); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];
/// The agent's own devices.
const AGENT_DEVICES: [(&str, u32, u32); 5] = [
    ("mem", 1, 1),
    ("null", 1, 3),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("kmsg", 1, 11),
];

/// What the guest could not do for us.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct GuestError {
    action: String,
    #[source]
    source: io::Error,
}

/// Names the action that failed.
fn doing<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> GuestError {
    let action = action.into();
    |source| GuestError {
        action,
        source: source.into(),
    }
}

/// What this VM is for: `wasmvm.role=` on the kernel's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs a tenant's program.
    Task,
    /// Compiles one module.
    Compiler,
}

impl Role {
    /// `None` for a command line that names no role we know.
    #[must_use]
    pub fn from_command_line(line: &str) -> Option<Self> {
        match line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("wasmvm.role="))?
        {
            "task" => Some(Self::Task),
            "compiler" => Some(Self::Compiler),
            _ => None,
        }
    }
}

/// PID 1. It never returns while all is well: the kernel panics when it does, which ends the VM.
#[must_use]
pub fn main() -> i32 {
    let error = match boot() {
        Ok(role) => match run(role) {
            Ok(()) => return 0,
            Err(error) => error,
        },
        Err(error) => error,
    };
    log::line(Level::Error, &log::chain(&error));
    1
}

/// File systems, device nodes, standard descriptors, role.
fn boot() -> Result<Role, GuestError> {
    rustix::process::umask(Mode::empty());
    // Not noexec: the runner maps the slot from /dev/mem r-x, and mmap(2) looks at the mount.
    mount(
        "tmpfs",
        "/dev",
        "tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=755,size=64k"),
    )?;
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    make_devices("/dev", &AGENT_DEVICES, 0o600)?;
    take_standard_descriptors()?;
    mount("proc", "/proc", "proc", safe | MountFlags::NODEV, None)?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let files = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    rustix::process::setrlimit(Resource::Nofile, limit).map_err(doing("raise the file limit"))?;
    let line = fs::read_to_string("/proc/cmdline").map_err(doing("read /proc/cmdline"))?;
    Role::from_command_line(&line).ok_or_else(|| GuestError {
        action: format!("find wasmvm.role=task or wasmvm.role=compiler in {line:?}"),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// The kernel hands none over where there is no console: 0 becomes the null device, 1 and 2 the log.
fn take_standard_descriptors() -> Result<(), GuestError> {
    // Parked above 2: a fresh descriptor may itself be 0, 1 or 2, and is closed again below.
    let open = |path: &str| -> Result<OwnedFd, GuestError> {
        rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
            .map_err(doing(format!("open {path}")))
    };
    let null = open("/dev/null")?;
    let log = open("/dev/kmsg")?;
    let duplicate = || doing("take the standard descriptors");
    rustix::stdio::dup2_stdin(null).map_err(duplicate())?;
    rustix::stdio::dup2_stdout(log.as_fd()).map_err(duplicate())?;
    rustix::stdio::dup2_stderr(log.as_fd()).map_err(duplicate())
}

fn run(role: Role) -> Result<(), GuestError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(doing("start the runtime"))?;
    runtime.block_on(async {
        match role {
            Role::Task => serve_task().await,
            #[cfg(feature = "compiler")]
            Role::Compiler => serve_compiler().await,
            #[cfg(not(feature = "compiler"))]
            Role::Compiler => Err(GuestError {
                action: "compile: this agent has no compiler".to_owned(),
                source: io::ErrorKind::Unsupported.into(),
            }),
        }
    })
}

async fn serve_task() -> Result<(), GuestError> {
    let stream_socket = listen(STREAM_PORT)?;
    limit_buffer(&stream_socket)?;
    let listener = streams::listener(stream_socket).map_err(doing("watch the stream port"))?;
    let streams = Arc::new(Streams::default());
    let mounted = AtomicBool::new(false);
    let site = Site {
        exe: "/proc/self/exe".into(),
        slot: open_slot()?,
        slot_offset: SLOT_ADDRESS,
        root: PathBuf::from(TASK_ROOT),
        prepare: Box::new(move |program| prepare(program, &mounted)),
    };
    let supervisor = Arc::new(Supervisor::new(site, Arc::clone(&streams)));
    let service = create_task(Arc::new(TaskService::new(supervisor)));
    let _server = serve(service).await?;
    tokio::spawn(announce());
    streams
        .serve(listener)
        .await
        .map_err(doing("accept streams"))
}

#[cfg(feature = "compiler")]
async fn serve_compiler() -> Result<(), GuestError> {
    use crate::compiler::CompilerService;
    use wasmvm_protocol::agent::create_compiler;
    use wasmvm_protocol::ports::ARTIFACT_PORT;

    let artifacts =
        streams::listener(listen(ARTIFACT_PORT)?).map_err(doing("watch the artifact port"))?;
    let service = CompilerService::new(
        "/proc/self/exe".into(),
        open_slot()?,
        SLOT_ADDRESS,
        artifacts,
    );
    let _server = serve(create_compiler(Arc::new(service))).await?;
    tokio::spawn(announce());
    std::future::pending().await
}

async fn serve(
    service: std::collections::HashMap<String, ttrpc::r#async::Service>,
) -> Result<ttrpc::r#async::Server, GuestError> {
    let failed = |error: ttrpc::Error| doing("serve the agent port")(io::Error::other(error));
    let mut server = ttrpc::r#async::Server::new()
        .bind(&format!("vsock://-1:{AGENT_PORT}"))
        .map_err(failed)?
        .register_service(service);
    server.start().await.map_err(failed)?;
    Ok(server)
}

fn listen(port: u32) -> Result<OwnedFd, GuestError> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map(OwnedFd::from)
        .map_err(doing(format!("listen on vsock port {port}")))
}

/// Accepted connections inherit the listener's buffer size.
fn limit_buffer(socket: &OwnedFd) -> Result<(), GuestError> {
    use std::os::fd::AsRawFd;
    // SAFETY: the option reads a u64 (`vsock_connectible_setsockopt`), which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_BUFFER_SIZE,
            std::ptr::from_ref(&STREAM_BUFFER_BYTES).cast(),
            8,
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(doing("bound the streams' buffers")(error));
    }
    Ok(())
}

/// PID 1 keeps the one descriptor: opening it takes `CAP_SYS_RAWIO`, mapping it none.
fn open_slot() -> Result<OwnedFd, GuestError> {
    rustix::fs::open("/dev/mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(doing("open /dev/mem"))
}

/// Tells the VMM that every port listens; it answers with a reset, which means "heard".
async fn announce() {
    let dial = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, READY_PORT));
    if tokio::time::timeout(READY_WAIT_MAX, dial).await.is_err() {
        log::line(Level::Warning, "nobody heard that the agent is ready");
    }
}

/// Sets the guest up for `program`: wall clock, host name, and once the file tree.
fn prepare(program: &Program, mounted: &AtomicBool) -> Result<(), GuestError> {
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
    // A tree without /dev that cannot be written has no place for one, and can be run all the same.
    if program.guest_dev
        && let Err(error) = make_task_devices()
    {
        log::line(Level::Warning, &log::chain(&error));
    }
    Ok(())
}

fn set_clock(wall_clock_ns: u64) -> Result<(), GuestError> {
    let now = Duration::from_nanos(wall_clock_ns);
    let time = Timespec::try_from(now)
        .map_err(|_| doing("set the clock")(io::Error::from(io::ErrorKind::InvalidInput)))?;
    rustix::time::clock_settime(ClockId::Realtime, time).map_err(doing("set the clock"))
}

fn make_task_devices() -> Result<(), GuestError> {
    let target = format!("{TASK_ROOT}/dev");
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    let _ = rustix::fs::mkdir(&target, Mode::from_bits_truncate(0o755));
    mount("dev", &target, "tmpfs", safe, Some(c"mode=755,size=64k"))?;
    let umask = rustix::process::umask(Mode::empty());
    let made = make_devices(&target, &TASK_DEVICES, 0o666);
    rustix::process::umask(umask);
    made
}

fn make_devices(
    directory: &str,
    devices: &[(&str, u32, u32)],
    mode: u32,
) -> Result<(), GuestError> {
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

fn mount(
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

    #[test]
    fn the_role_is_a_whole_word_of_the_command_line() {
        let role = Role::from_command_line;
        assert_eq!(role("quiet wasmvm.role=task panic=-1\n"), Some(Role::Task));
        assert_eq!(role("wasmvm.role=compiler"), Some(Role::Compiler));
        assert_eq!(role("xwasmvm.role=task"), None);
        assert_eq!(role("wasmvm.role=other"), None);
        assert_eq!(role(""), None);
    }
}

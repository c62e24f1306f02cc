//! PID 1: from the kernel's hand-over to the ready announcement.
//!
//! The order matters: nothing can be said before `/dev/kmsg` exists, and the host connects as soon as
//! it hears of us, so every port listens before that.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};
use wasmvm_protocol::agent::containerd::shim_async::create_task;
use wasmvm_protocol::error_chain;
use wasmvm_protocol::ports::{AGENT_PORT, STREAM_PORT};

use crate::log::{self, Level};
use crate::service::TaskService;
use crate::streams::{self, Streams};
use crate::supervisor::{Site, Supervisor};
use crate::tree::{self, Device, GuestError, TASK_ROOT, doing, make_devices, mount};
use crate::vsock::{announce, limit_buffer, listen};

/// The agent's own devices.
const AGENT_DEVICES: [Device; 6] = [
    ("mem", 1, 1),
    ("null", 1, 3),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("kmsg", 1, 11),
    ("ptmx", 5, 2),
];
/// Where the kernel makes the slaves of terminals; beside `ptmx`, which looks for it there.
const TERMINALS: &str = "/dev/pts";

/// The purpose of this VM: `wasmvm.role=` on the kernel's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs a tenant's program.
    Task,
    /// Compiles one module, in the compiler VM.
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
    log::line(Level::Error, &error_chain(&error));
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
    Role::from_command_line(&line).ok_or_else(|| {
        let action = format!("find wasmvm.role=task or wasmvm.role=compiler in {line:?}");
        doing(action)(io::Error::from(io::ErrorKind::NotFound))
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
            Role::Compiler => Err(doing("compile: this agent has no compiler")(
                io::Error::from(io::ErrorKind::Unsupported),
            )),
        }
    })
}

async fn serve_task() -> Result<(), GuestError> {
    mount_terminals()?;
    let stream_socket = listen(STREAM_PORT)?;
    limit_buffer(&stream_socket)?;
    let listener = streams::listener(stream_socket).map_err(doing("watch the stream port"))?;
    let streams = Arc::new(Streams::default());
    let mounted = AtomicBool::new(false);
    let site = Site {
        exe: "/proc/self/exe".into(),
        slots: open_slots()?,
        root: PathBuf::from(TASK_ROOT),
        prepare: Box::new(move |program| tree::prepare(program, &mounted)),
        set_clock: Box::new(tree::set_clock),
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

/// Outside the task's tree: a program has its terminal as 0, 1 and 2 and opens none.
fn mount_terminals() -> Result<(), GuestError> {
    rustix::fs::mkdir(TERMINALS, Mode::from_bits_truncate(0o755))
        .map_err(doing(format!("make {TERMINALS}")))?;
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", TERMINALS, "devpts", safe, Some(c"mode=600"))
}

#[cfg(feature = "compiler")]
async fn serve_compiler() -> Result<(), GuestError> {
    use crate::compiler::CompilerService;
    use wasmvm_protocol::agent::create_compiler;
    use wasmvm_protocol::ports::ARTIFACT_PORT;
    use wasmvm_protocol::slot::SLOT_ADDRESS;

    let artifacts =
        streams::listener(listen(ARTIFACT_PORT)?).map_err(doing("watch the artifact port"))?;
    let service = CompilerService::new(
        "/proc/self/exe".into(),
        open_slots()?,
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

/// PID 1 keeps the one descriptor: opening it takes `CAP_SYS_RAWIO`, mapping it none.
fn open_slots() -> Result<OwnedFd, GuestError> {
    rustix::fs::open("/dev/mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(doing("open /dev/mem"))
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

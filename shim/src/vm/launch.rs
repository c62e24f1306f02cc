//! Spawns a VMM and leads it through the handshake of [`wasmvm_protocol::control`].
//!
//! The launch runs on a thread of its own, because the VMM inherits that thread's mount namespace, working
//! directory and network namespace:
//!
//! ```text
//! unshare(FS | NEWNS) ─► prepare: mount the tree, stand in it ─► network, its sysctls ─► spawn
//!   ─► Boot ─► NeedMaps ─► write uid_map, gid_map ─► MapsWritten ─► Jailed ─► the thread ends
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use wasmvm_protocol::control::{self, BootConfig, ControlError, FromVmm, ToVmm};

use crate::bundle::Sysctl;
use crate::cgroup::Birth;
use crate::config::open_installed;
use crate::error::{Coded, ErrorCode};
use crate::host_process::HostProcess;
use crate::log::{in_span, spawn_in_span};
use crate::sys::spawn::{self, SpawnError, SpawnRequest};
use crate::sys::watch::readable_within;
use crate::vm::network::{self, Network, NetworkError};
use crate::vm::{Vm, VmError, log};

/// How long the handshake may take, from exec to a closed jail; the guest's boot comes after.
const HANDSHAKE_MAX: Duration = Duration::from_secs(20);
/// Identity map of all ids but -1, `user_namespaces(7)`.
const IDENTITY_MAP: &str = "0 0 4294967295\n";

/// The files a VM is made of.
#[derive(Clone, Debug)]
pub(crate) struct VmFiles {
    /// The path of `wasmvm-vmm`, the VMM.
    pub vmm: PathBuf,
    /// The guest kernel, an uncompressed ELF.
    pub kernel: PathBuf,
    /// The guest's initramfs, an uncompressed cpio.
    pub initramfs: PathBuf,
    /// Files that the paths name by their descriptors (`/proc/self/fd`).
    pub held: Vec<Arc<File>>,
}

/// The parts and the surroundings of a VMM to launch.
#[derive(Debug)]
pub(crate) struct LaunchRequest {
    /// The name of the VM in the log.
    pub name: String,
    /// The files that the VM is made of.
    pub files: VmFiles,
    /// How the VMM builds the VM.
    pub boot: BootConfig,
    /// The cgroup that the VMM is born in.
    pub cgroup: Birth,
    /// The network namespace that the VMM lives in.
    pub network: Network,
    /// Settings of the network namespace, written before the VMM is spawned.
    pub sysctls: Vec<Sysctl>,
    /// `/proc/PID/oom_score_adj`: the shim's own must not be inherited.
    pub oom_score_adj: i32,
}

/// Why a VMM was not launched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm; `wasmvm check` says what this host lacks")]
    Kvm(#[source] io::Error),
    /// An installed file is missing or unreadable.
    #[error("cannot open {}; `make install` puts it there", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The network namespace cannot be had, or a setting in it.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A step of the launch itself failed.
    #[error("cannot {action}")]
    Step {
        /// The step, to stand behind "cannot".
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// The VMM could not be spawned, by `clone3` or exec.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The control socket failed during the handshake.
    #[error("the VMM did not come up")]
    Control(#[source] ControlError),
    /// The VMM refused the boot order, or answered something else; holds the reason.
    #[error("the VMM cannot start: {0}")]
    Refused(String),
    /// The VMM ended or did not answer before its jail was closed.
    #[error("the VMM {0} before its jail was closed")]
    Silent(&'static str),
    /// The VMM could not be taken over after the handshake.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl Coded for LaunchError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Kvm(_) | Self::File { .. } => ErrorCode::FailedPrecondition,
            Self::Network(err) => err.code(),
            Self::Vm(err) => err.code(),
            Self::Step { .. }
            | Self::Spawn(_)
            | Self::Control(_)
            | Self::Refused(_)
            | Self::Silent(_) => ErrorCode::Internal,
        }
    }
}

/// A VMM whose jail is closed.
struct Launched {
    process: HostProcess,
    control: OwnedFd,
    log: OwnedFd,
    /// The features of the guest's CPU, as [`FromVmm::Jailed`] has them.
    cpu: String,
}

/// Runs `prepare` on the VMM's thread, in a mount namespace of its own, then launches the VMM in the
/// working directory that `prepare` left. Returns when the guest starts.
///
/// # Errors
/// `prepare`'s error, or [`LaunchError`]; then no process and no mount is left.
pub(crate) async fn launch<T, E>(
    request: LaunchRequest,
    prepare: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<(Vm, T), E>
where
    T: Send + 'static,
    E: From<LaunchError> + Send + 'static,
{
    let name = request.name.clone();
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("vm-launch".into())
        .spawn(in_span(move || {
            let prepared = spawn::leave_host_mounts()
                .map_err(|source| E::from(step("leave the host's mounts", source)))
                .and_then(|()| prepare());
            let launched = prepared.and_then(|value| Ok((spawn_and_lead(&request)?, value)));
            if let Err(Ok((unwanted, _))) = sender.send(launched) {
                // The request was dropped meanwhile.
                end(&unwanted.process);
            }
        }))
        .map_err(|source| step("start the launch thread", source))?;
    let launched = receiver
        .await
        .map_err(|_| LaunchError::Silent("launch was abandoned"))?;
    let (launched, value) = launched?;
    let vm = launched.into_vm(name)?;
    Ok((vm, value))
}

impl Launched {
    fn into_vm(self, name: String) -> Result<Vm, LaunchError> {
        let reader = pipe::Receiver::from_owned_fd(self.log)
            .map_err(|source| step("watch the VMM's log", source))?;
        spawn_in_span(async move {
            if let Err(err) = log::forward(reader, name).await {
                tracing::warn!(error = %err, "the VMM's log ended");
            }
        });
        Ok(Vm::new(self.process, self.control, self.cpu)?)
    }
}

fn spawn_and_lead(request: &LaunchRequest) -> Result<Launched, LaunchError> {
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(LaunchError::Kvm)?;
    let vmm = open(&request.files.vmm)?;
    let kernel = open(&request.files.kernel)?;
    let initramfs = open(&request.files.initramfs)?;
    let new_network = network::enter(&request.network, &request.sysctls)?;
    let (control, theirs) =
        control::pair().map_err(|source| step("make the control socket", source))?;
    let (log, log_writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| step("make the log pipe", errno.into()))?;
    // Non-blocking at the shim's end only: the VMM's writes wait rather than fail.
    fcntl_setfl(&log, OFlags::NONBLOCK)
        .map_err(|errno| step("make the log pipe non-blocking", errno.into()))?;
    let spawned = spawn::spawn(&SpawnRequest {
        name: c"wasmvm-vmm",
        executable: vmm.as_fd(),
        stdin: None,
        log: log_writer.as_fd(),
        control: Some(theirs.as_fd()),
        cgroup: request.cgroup.unified.as_ref().map(AsFd::as_fd),
        cgroup_procs: &request.cgroup.procs,
        new_network,
        own_core: wants_own_core(),
    })?;
    drop((theirs, log_writer));
    let process = HostProcess::new(spawned.pid, spawned.pidfd);
    let boot = ToVmm::Boot(request.boot.clone());
    let scored = process
        .set_oom_score_adj(request.oom_score_adj)
        .map_err(|source| step("set the VMM's oom_score_adj", source));
    let led = scored.and_then(|()| {
        lead(
            &control,
            process.pid(),
            &boot,
            [kvm.as_fd(), kernel.as_fd(), initramfs.as_fd()],
        )
    });
    match led {
        Ok(cpu) => Ok(Launched {
            process,
            control,
            log,
            cpu,
        }),
        Err(err) => {
            end(&process);
            Err(err)
        }
    }
}

/// Ends a VMM that serves nobody. A killed child ends; if the kernel holds the child, the cgroup's removal says so.
fn end(process: &HostProcess) {
    process.kill();
    let _ = process.wait_blocking(HANDSHAKE_MAX);
}

/// Whether containerd's `sched_core = true` is set: shims read that from their environment, as runc's shim does.
fn wants_own_core() -> bool {
    std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty())
}

fn write_map(proc: &OwnedFd, map: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, map, flags, Mode::empty())?;
    File::from(file).write_all(IDENTITY_MAP.as_ref())
}

/// The handshake, from [`ToVmm::Boot`] to [`FromVmm::Jailed`]; returns the features of the guest's CPU.
fn lead(
    control: &OwnedFd,
    pid: u32,
    boot: &ToVmm,
    fds: [std::os::fd::BorrowedFd<'_>; 3],
) -> Result<String, LaunchError> {
    let deadline = Instant::now() + HANDSHAKE_MAX;
    // Opened before the boot order: this thread shares the VMM's mount namespace, and pivot_root(2)
    // moves the root of every process in it that stood on the old one, so /proc is out of reach then.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
        .map_err(|errno| step("open the VMM's /proc directory", errno.into()))?;
    control::send(control, boot, &fds).map_err(LaunchError::Control)?;
    loop {
        match next(control, deadline)? {
            FromVmm::NeedMaps => {
                for map in ["uid_map", "gid_map"] {
                    write_map(&proc, map)
                        .map_err(|source| step("write the VMM's identity maps", source))?;
                }
                control::send(control, &ToVmm::MapsWritten, &[]).map_err(LaunchError::Control)?;
            }
            FromVmm::Jailed { cpu } => return Ok(cpu),
            FromVmm::BootFailed { reason } => return Err(LaunchError::Refused(reason)),
            other => {
                return Err(LaunchError::Refused(format!(
                    "it answered {other:?} to the boot order"
                )));
            }
        }
    }
}

fn next(control: &OwnedFd, deadline: Instant) -> Result<FromVmm, LaunchError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let ready =
        readable_within(control, left).map_err(|source| step("wait for the VMM", source))?;
    if !ready {
        return Err(LaunchError::Silent("fell silent"));
    }
    let heard = control::hear(control).map_err(LaunchError::Control)?;
    heard.ok_or(LaunchError::Silent("ended"))
}

fn open(path: &Path) -> Result<File, LaunchError> {
    open_installed(path).map_err(|source| LaunchError::File {
        path: path.to_owned(),
        source,
    })
}

fn step(action: &'static str, source: io::Error) -> LaunchError {
    LaunchError::Step { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        use ErrorCode::{FailedPrecondition, Internal, Unavailable};
        let source = || io::Error::from(io::ErrorKind::NotFound);
        let file = LaunchError::File {
            path: "/kernel".into(),
            source: source(),
        };
        expect_codes([
            (LaunchError::Kvm(source()), FailedPrecondition),
            (file, FailedPrecondition),
            (step("make the log pipe", source()), Internal),
            (LaunchError::Control(ControlError::Truncated), Internal),
            (LaunchError::Refused("no".into()), Internal),
            (LaunchError::Silent("ended"), Internal),
            (LaunchError::Vm(VmError::Deaf), Unavailable),
        ]);
    }
}

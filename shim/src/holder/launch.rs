//! Spawns the holder of a pod and leads it until it is confined.
//!
//! The launch runs on a thread of its own, because the holder inherits that thread's mount namespace, working
//! directory, network namespace and host name:
//!
//! ```text
//! unshare(FS | NEWNS) ─► network, its sysctls ─► unshare(NEWUTS), host name ─► an empty tmpfs, to stand in ─► spawn
//!   ─► oom_score_adj ─► one byte: go on ─► the holder's zero byte, or its sentence ─► the thread ends
//! ```

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::MountFlags;
use tokio::sync::oneshot;

use crate::bundle::{Network as SpecNetwork, Sysctl};
use crate::cgroup::Birth;
use crate::config::open_installed;
use crate::error::{Coded, ErrorCode, printable};
use crate::host_process::HostProcess;
use crate::journal::STATE_ROOT;
use crate::log::in_span;
use crate::sys::spawn::{SpawnError, SpawnRequest, leave_host_mounts, spawn, unshare_hostname};
use crate::sys::watch::readable_within;
use crate::vm::network::{self, Network, NetworkError};

/// How long the holder may take from exec until it is confined.
const CONFINED_MAX: Duration = Duration::from_secs(20);
/// Longest sentence of a holder that fails, bytes.
const SENTENCE_BYTES_MAX: usize = 512;
/// The holder's word that it is confined.
const READY: &[u8] = &[0];

/// The surroundings of a holder.
#[derive(Debug)]
pub(super) struct HolderRequest {
    /// Path of the program.
    pub program: PathBuf,
    /// Host name of the pod; empty for the host's own.
    pub hostname: String,
    /// The network namespace that the holder lives in.
    pub network: SpecNetwork,
    /// Settings of the network namespace, written before the holder is spawned.
    pub sysctls: Vec<Sysctl>,
    /// The cgroup that the holder is born in.
    pub cgroup: Birth,
    /// `/proc/PID/oom_score_adj`: the shim's own must not be inherited.
    pub oom_score_adj: i32,
}

/// A holder that is confined. Its drop ends the process.
#[derive(Debug)]
pub(super) struct HolderProcess {
    /// The process on the host.
    pub host: HostProcess,
    /// The shim's end of the holder's socket: the holder exits when the end is closed.
    _control: UnixStream,
}

/// Why there is no holder.
#[derive(Debug, thiserror::Error)]
pub(super) enum HolderError {
    /// The program is missing or unreadable.
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
    /// The process could not be spawned.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The holder could not be confined; holds its sentence.
    #[error("the pod's holder cannot start: {0}")]
    Refused(String),
    /// The holder ended or did not answer.
    #[error("the pod's holder {0} before it was confined")]
    Silent(&'static str),
}

impl Coded for HolderError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::File { .. } => ErrorCode::FailedPrecondition,
            Self::Network(err) => err.code(),
            Self::Step { .. } | Self::Spawn(_) | Self::Refused(_) | Self::Silent(_) => {
                ErrorCode::Internal
            }
        }
    }
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> HolderError {
    move |source| HolderError::Step {
        action,
        source: source.into(),
    }
}

/// Launches the holder. Returns when it is confined.
///
/// # Errors
/// [`HolderError`]; then no process and no mount is left.
pub(super) async fn launch(request: HolderRequest) -> Result<HolderProcess, HolderError> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("holder-launch".into())
        .spawn(in_span(move || {
            if let Err(Ok(unwanted)) = sender.send(spawn_and_lead(&request)) {
                // The request was dropped meanwhile.
                end(&unwanted.host);
            }
        }))
        .map_err(step("start the launch thread"))?;
    let launched = receiver.await;
    launched.map_err(|_| HolderError::Silent("launch was abandoned"))?
}

/// Ends a holder that serves nobody.
fn end(process: &HostProcess) {
    process.kill();
    let _ = process.wait_blocking(CONFINED_MAX);
}

fn spawn_and_lead(request: &HolderRequest) -> Result<HolderProcess, HolderError> {
    leave_host_mounts().map_err(step("leave the host's mounts"))?;
    let program = open_installed(&request.program).map_err(|source| HolderError::File {
        path: request.program.clone(),
        source,
    })?;
    let new_network = network::enter(&network_of(&request.network)?, &request.sysctls)?;
    take_hostname(&request.hostname).map_err(step("set the pod's host name"))?;
    enter_empty_root().map_err(step("make an empty root"))?;
    let (mut control, theirs) = UnixStream::pair().map_err(step("make the control socket"))?;
    let spawned = spawn(&SpawnRequest {
        name: c"wasmvm-holder",
        executable: program.as_fd(),
        stdin: Some(theirs.as_fd()),
        log: theirs.as_fd(),
        control: None,
        cgroup: request.cgroup.unified.as_ref().map(AsFd::as_fd),
        cgroup_procs: &request.cgroup.procs,
        new_network,
        own_core: false,
    })?;
    drop(theirs);
    let host = HostProcess::new(spawned.pid, spawned.pidfd);
    let led = lead(&host, &mut control, request.oom_score_adj);
    if led.is_err() {
        end(&host);
    }
    led.map(|()| HolderProcess {
        host,
        _control: control,
    })
}

/// The namespace of a holder: a pod on the host's network lives in the host's, whatever path leads there.
fn network_of(spec: &SpecNetwork) -> Result<Network, HolderError> {
    Ok(match spec {
        SpecNetwork::Host => Network::Host,
        SpecNetwork::New => Network::Empty,
        SpecNetwork::Path(path) if network::is_hosts(path)? => Network::Host,
        SpecNetwork::Path(path) => Network::Path(path.clone()),
    })
}

fn take_hostname(hostname: &str) -> io::Result<()> {
    if hostname.is_empty() {
        return Ok(());
    }
    unshare_hostname()?;
    Ok(rustix::system::sethostname(hostname.as_bytes())?)
}

/// Stands in a tmpfs that is empty and stays so. The tmpfs lies in this thread's mount namespace alone, on a directory
/// that is there in any case.
fn enter_empty_root() -> io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=1,mode=0755";
    rustix::mount::mount(c"none", STATE_ROOT, c"tmpfs", flags, options)?;
    Ok(rustix::process::chdir(STATE_ROOT)?)
}

/// Lets the holder go on, and waits until it is confined.
fn lead(host: &HostProcess, control: &mut UnixStream, score: i32) -> Result<(), HolderError> {
    host.set_oom_score_adj(score)
        .map_err(step("set the holder's oom_score_adj"))?;
    control
        .write_all(READY)
        .map_err(step("talk to the pod's holder"))?;
    let ready = readable_within(&*control, CONFINED_MAX);
    if !ready.map_err(step("wait for the pod's holder"))? {
        return Err(HolderError::Silent("fell silent"));
    }
    let mut answer = [0; SENTENCE_BYTES_MAX];
    let length = control
        .read(&mut answer)
        .map_err(step("hear the pod's holder"))?;
    match &answer[..length] {
        READY => Ok(()),
        [] => Err(HolderError::Silent("ended")),
        sentence => Err(HolderError::Refused(printable(
            String::from_utf8_lossy(sentence).trim_end(),
        ))),
    }
}

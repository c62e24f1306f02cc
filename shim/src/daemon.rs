//! The daemon: serves the task for which `start` has started it, until `Shutdown`.
//!
//! ```text
//! start ─ listener as standard input ─► serve ─► task v2 + v3 and inspect on one socket
//!                                         └ ends: Shutdown, or no task for IDLE_MAX
//! ```
//!
//! One thread runs everything here but the answer to SIGUSR1. Work that blocks (mounts, clone, compile) has threads of
//! its own.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service as ServiceTable};
use wasmvm_protocol::agent::containerd::shim_async::{Task as TaskService, create_task};
use wasmvm_protocol::inspect_service::create_inspect;

use crate::events::{EventSink, Publisher};
use crate::service::{Service, look_when_asked};
use crate::task::Tasks;
use crate::task_vm::HostMaker;

/// A daemon without a task ends by itself: containerd may have refused the reply of `start`, or died
/// between two requests.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the server may take to send its last answers; nothing else is on its way then.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Name of the Task service as `containerd-shim-protos` registers it.
const TASK_V3: &str = "containerd.task.v3.Task";
/// Name of the Task service that containerd 1.6 to 2.x calls when the reply of `start` was a bare address.
const TASK_V2: &str = "containerd.task.v2.Task";

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// Standard input is no listening socket: the daemon was not started by `start`.
    #[error("standard input is not a listening socket; `serve` is run by `start` alone")]
    Listener(#[source] io::Error),
    /// A step of the process' set-up failed; holds the step, as in "start the runtime".
    #[error("cannot {0}")]
    SetUp(&'static str, #[source] io::Error),
    /// The ttrpc server cannot start on the socket.
    #[error("cannot serve the socket")]
    Server(#[source] ttrpc::Error),
}

/// The settings that `start` hands to the daemon beside the listener, by command line and environment.
#[derive(Clone, Debug)]
pub(crate) struct DaemonOrder {
    /// containerd's namespace, in which the ids of tasks are unique.
    pub namespace: String,
    /// Id of the task for which the daemon was started.
    pub id: String,
    /// Path of the socket on which containerd takes events.
    pub events_address: PathBuf,
    /// Whether containerd logs at level debug or trace.
    pub debug: bool,
}

/// Serves the socket on standard input until `Shutdown`, or until there has been no task for [`IDLE_MAX`].
///
/// # Errors
/// [`DaemonError`], when the daemon cannot begin to serve.
pub(crate) fn serve(order: &DaemonOrder) -> Result<(), DaemonError> {
    let (listener, path) = take_listener()?;
    // Fails only when we lead a session already, which is what we want.
    let _ = rustix::process::setsid();
    let bundle = std::env::current_dir()
        .map_err(|error| DaemonError::SetUp("find the working directory", error))?;
    crate::log::init(&bundle, &order.id, order.debug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| DaemonError::SetUp("start the runtime", error))?;
    let served = runtime.block_on(run(order, listener, &path));
    if let Err(error) = &served {
        tracing::error!(error = crate::error::chain(error), "the shim cannot serve");
    }
    // Threads that still block must not keep the process.
    runtime.shutdown_background();
    served
}

/// Takes the listener and its path from standard input, and puts the null device in its place.
fn take_listener() -> Result<(UnixListener, PathBuf), DaemonError> {
    let listener = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixListener::from)
        .map_err(DaemonError::Listener)?;
    let path = listener
        .local_addr()
        .map_err(DaemonError::Listener)?
        .as_pathname()
        .map(Path::to_owned)
        .ok_or_else(|| DaemonError::Listener(io::ErrorKind::AddrNotAvailable.into()))?;
    let null = std::fs::File::open("/dev/null")
        .map_err(|error| DaemonError::SetUp("open /dev/null", error))?;
    rustix::stdio::dup2_stdin(&null)
        .map_err(|errno| DaemonError::SetUp("replace standard input", errno.into()))?;
    listener
        .set_nonblocking(true)
        .map_err(DaemonError::Listener)?;
    Ok((listener, path))
}

async fn run(order: &DaemonOrder, listener: UnixListener, path: &Path) -> Result<(), DaemonError> {
    let listener = tokio::net::UnixListener::from_std(listener).map_err(DaemonError::Listener)?;
    let events = Arc::new(Publisher::new(
        &order.namespace,
        order.events_address.clone(),
    ));
    let (shutdown, mut wanted) = watch::channel(false);
    let tasks = Arc::new(Tasks::new(
        Arc::new(HostMaker),
        events.clone() as Arc<dyn EventSink>,
    ));
    let service = Arc::new(Service::new(&order.namespace, tasks.clone(), shutdown));
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(services(&service))
        .register_service(create_inspect(service.clone()));
    ignore_signals()?;
    look_when_asked(service, |task_id, line| {
        tracing::info!(task_id, "look: {line}");
    })
    .map_err(|error| DaemonError::SetUp("handle signals", error))?;
    server.start().await.map_err(DaemonError::Server)?;
    tracing::debug!(task_id = %order.id, pid = std::process::id(), "serving");
    let why = tokio::select! {
        // The sender lives in the service, and that in the server.
        _ = wanted.wait_for(|shutdown| *shutdown) => "asked to",
        () = idle(tasks.count()) => "no task",
    };
    // Removed before the socket closes: a socket that is bound to the name afterwards is not ours.
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
    }
    events.flush().await;
    let closed = tokio::time::timeout(CLOSE_MAX, server.shutdown()).await;
    tracing::debug!(task_id = %order.id, why, in_order = closed.is_ok(), "the shim ends");
    Ok(())
}

/// The Task service under its two names: the messages of v2 and v3 differ in the name of their package only.
fn services<T: TaskService + Send + Sync + 'static>(
    service: &Arc<T>,
) -> std::collections::HashMap<String, ServiceTable> {
    let mut services = create_task(service.clone());
    for (name, table) in create_task(service.clone()) {
        debug_assert_eq!(name, TASK_V3, "the version that the protos crate speaks");
        services.insert(TASK_V2.to_owned(), table);
    }
    services
}

/// Returns when there has been no task for [`IDLE_MAX`].
async fn idle(mut count: watch::Receiver<usize>) {
    loop {
        // An error means that the sender, the registry of tasks, is gone.
        if count.wait_for(|count| *count == 0).await.is_err() {
            return;
        }
        let busy = count.wait_for(|count| *count > 0);
        match tokio::time::timeout(IDLE_MAX, busy).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Ignores the signals that end a process by default: the task ends when containerd asks, not by a signal to the
/// shim's process group.
fn ignore_signals() -> Result<(), DaemonError> {
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        let mut signals =
            signal(kind).map_err(|error| DaemonError::SetUp("handle signals", error))?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                tracing::info!(signal = kind.as_raw_value(), "ignored");
            }
        });
    }
    Ok(())
}

//! `start`: bind the socket, leave a daemon behind that inherits the socket, reply with the socket's address. A
//! container of a pod gets no daemon: the reply is the address of the pod's.
//!
//! The socket listens before the daemon runs, so containerd's first request waits in the socket's backlog
//! and `start` need not wait for the daemon. The listener is the daemon's standard input: a descriptor
//! number that needs no unsafe code on either side.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args::Args;
use super::bootstrap::{BootstrapError, Dialect};
use super::cgroup::{self, ShimCgroupError};
use super::socket::{self, Bound, SocketError};
use crate::bundle::{BundleError, PodPlace};
use crate::config::options::{self, OptionsError};
use crate::daemon::DaemonOrder;
use crate::journal::{self, TASKS_ROOT};

/// Name of the variable with the address of containerd's event socket, in the environment of shims.
const EVENTS_ADDRESS_VARIABLE: &str = "TTRPC_ADDRESS";
/// Largest `oom_score_adj` that the kernel takes.
const OOM_SCORE_ADJ_MAX: i32 = 1000;

/// Why no daemon was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The annotations that name a pod make no sense, or `config.json` cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The container's pod has no daemon.
    #[error(
        "pod {0}, which annotations[\"io.kubernetes.cri.sandbox-id\"] names, has no shim of io.containerd.wasmvm.v1 \
         here: its shim has died, or its sandbox has another runtime or containerd"
    )]
    NoPod(String),
    /// The socket could not be bound, or its address not written.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The parameters on standard input were refused.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The runtime's options were refused, or could not be kept.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The daemon could not enter the cgroup that the options name.
    #[error(transparent)]
    Cgroup(#[from] ShimCgroupError),
    /// Our own executable or working directory cannot be named.
    #[error("cannot find {0}")]
    Self_(&'static str, #[source] io::Error),
    /// The daemon did not start.
    #[error("cannot execute {0}")]
    Spawn(PathBuf, #[source] io::Error),
}

/// Starts the daemon, unless a daemon serves the task's socket already, and returns the reply to print. A container of a
/// pod is served by the pod's daemon, or not at all.
pub(super) fn start(args: &Args, input: &[u8]) -> Result<Vec<u8>, StartError> {
    let bundle = std::env::current_dir()
        .map_err(|error| StartError::Self_("the working directory", error))?;
    start_in(&bundle, Path::new(TASKS_ROOT), args, input)
}

fn start_in(bundle: &Path, tasks: &Path, args: &Args, input: &[u8]) -> Result<Vec<u8>, StartError> {
    let dialect = Dialect::of(input, &args.namespace, &args.id);
    let place = PodPlace::of_bundle(bundle, &args.id)?;
    // The id of the pod, or the task's own, names the socket: each pod and each task without one has its daemon.
    let owner = match &place {
        PodPlace::Container { pod } => pod,
        PodPlace::Alone | PodPlace::Sandbox => &args.id,
    };
    let directory = dialect.socket_dir()?;
    let path = socket::path(&directory, &args.address, &args.namespace, owner);
    let address = socket::address(&path);
    let reply = dialect.reply(&address)?;
    if let PodPlace::Container { pod } = &place
        && !(journal::is_pod(tasks, &args.namespace, pod) && socket::is_served(&path))
    {
        return Err(StartError::NoPod(pod.clone()));
    }
    // Create reads the options, in whichever daemon it is served.
    if let Some(options) = dialect.options() {
        options::save(bundle, options)?;
    }
    let bound = match place {
        PodPlace::Container { .. } => Bound::Served,
        PodPlace::Alone | PodPlace::Sandbox => socket::bind(&path)?,
    };
    if let Bound::New(listener) = bound {
        let started = socket::write_address(bundle, &address)
            .map_err(StartError::from)
            .and_then(|()| spawn(args, &dialect, listener));
        if let Err(error) = started {
            // No daemon will ever listen there; the error says what matters.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
    } else {
        socket::write_address(bundle, &address)?;
    }
    Ok(reply)
}

fn spawn(args: &Args, dialect: &Dialect, listener: UnixListener) -> Result<(), StartError> {
    let cgroup = match dialect.options() {
        Some(options) => options::shim_cgroup(options)?,
        None => None,
    };
    let program =
        std::env::current_exe().map_err(|error| StartError::Self_("this executable", error))?;
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id])
        .args(["-address", &args.address])
        .args(["-publish-binary", &args.publish_binary])
        .args((args.debug || dialect.debug()).then_some("-debug"))
        .arg("serve")
        .stdin(OwnedFd::from(listener))
        // containerd reads our standard output and error until every process has closed them.
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(address) = dialect.events_address() {
        command.env(EVENTS_ADDRESS_VARIABLE, address);
    }
    let mut child = command
        .spawn()
        .map_err(|error| StartError::Spawn(program, error))?;
    adjust_oom_score(child.id());
    if let Some(path) = cgroup
        && let Err(error) = cgroup::move_into(&path, child.id())
    {
        // The daemon has done nothing yet. A failure means that it has exited.
        let _ = child.kill();
        let _ = child.wait();
        return Err(error.into());
    }
    Ok(())
}

/// The order of the daemon whose command line and environment `start` has written.
pub(super) fn daemon_order(args: Args) -> DaemonOrder {
    DaemonOrder {
        events_address: match std::env::var_os(EVENTS_ADDRESS_VARIABLE) {
            Some(address) => address.into(),
            None => format!("{}.ttrpc", args.address).into(),
        },
        namespace: args.namespace,
        id: args.id,
        debug: args.debug,
    }
}

/// Makes the OOM killer prefer the daemon to containerd: containerd's own score plus one. A
/// kernel that refuses leaves containerd's score, which is no reason to fail.
fn adjust_oom_score(daemon: u32) {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let score = fs::read_to_string(
        Path::new("/proc")
            .join(parent.to_string())
            .join("oom_score_adj"),
    )
    .ok()
    .and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let score = score.saturating_add(1).min(OOM_SCORE_ADJ_MAX);
        let _ = fs::write(format!("/proc/{daemon}/oom_score_adj"), score.to_string());
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use wasmvm_protocol::agent::containerd::bootstrap_api::BootstrapParams;

    use super::*;
    use crate::command::Action;
    use crate::journal::Journal;

    /// A second `start` finds the daemon, and keeps the options of its own bundle.
    #[test]
    fn options_are_kept_also_where_a_daemon_serves() {
        let (bundle, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let captured = include_bytes!("captures/main-1.stdin");
        let mut params = BootstrapParams::parse_from_bytes(captured).unwrap();
        let directory = sockets.path().to_str().unwrap().to_owned();
        params.socket_dir = Some(directory.clone());
        let args = Args {
            action: Action::Start,
            namespace: "default".into(),
            id: "t1".into(),
            address: "/run/c.sock".into(),
            publish_binary: String::new(),
            bundle: None,
            debug: false,
        };
        let path = socket::path(&directory, &args.address, "default", "t1");
        let _daemon = UnixListener::bind(&path).unwrap();
        let input = params.write_to_bytes().unwrap();
        start_in(bundle.path(), Path::new("/nonexistent"), &args, &input).unwrap();
        let options = Dialect::of(&input, "default", "t1").options().cloned();
        let kept = fs::read(bundle.path().join("options")).unwrap();
        assert_eq!(kept, options.unwrap().write_to_bytes().unwrap());
        assert_eq!(socket::noted(bundle.path()), Some(path));
    }
    fn args(id: &str) -> Args {
        Args {
            action: Action::Start,
            namespace: "k8s.io".into(),
            id: id.into(),
            address: "/run/c.sock".into(),
            publish_binary: String::new(),
            bundle: None,
            debug: false,
        }
    }

    /// The socket of a pod's daemon may be another runtime's, or that of a task that is no pod.
    #[test]
    fn a_container_joins_the_daemon_of_its_pod_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let (bundle, tasks) = (
            directory.path().join("bundle"),
            directory.path().join("tasks"),
        );
        fs::create_dir(&bundle).unwrap();
        let annotations = r#"{"annotations": {"io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "pod"}}"#;
        fs::write(bundle.join("config.json"), annotations).unwrap();
        let captured = include_bytes!("captures/main-1.stdin");
        let mut params = BootstrapParams::parse_from_bytes(captured).unwrap();
        let sockets = directory.path().to_str().unwrap().to_owned();
        params.socket_dir = Some(sockets.clone());
        params.instance_id = "c".into();
        params.namespace = "k8s.io".into();
        let input = params.write_to_bytes().unwrap();
        let path = socket::path(&sockets, "/run/c.sock", "k8s.io", "pod");
        let join = || start_in(&bundle, &tasks, &args("c"), &input);
        let is_refused = || {
            let refused = matches!(join().unwrap_err(), StartError::NoPod(pod) if pod == "pod");
            refused && socket::noted(&bundle).is_none() && !bundle.join("options").exists()
        };
        assert!(is_refused());
        let daemon = UnixListener::bind(&path).unwrap();
        assert!(is_refused(), "another runtime's");
        let create = |pod| Journal::create(&tasks, "k8s.io", "pod", &bundle, pod).unwrap();
        let journal = create(None);
        assert!(is_refused(), "no pod");
        journal::forget(&tasks, "k8s.io", "pod").unwrap();
        drop(journal);
        let _journal = create(Some("pod"));
        join().unwrap();
        assert_eq!(socket::noted(&bundle), Some(path));
        fs::remove_file(bundle.join("address")).unwrap();
        fs::remove_file(bundle.join("options")).unwrap();
        drop(daemon);
        assert!(is_refused(), "a dead daemon");
    }
}

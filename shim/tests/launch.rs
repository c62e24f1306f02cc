//! The launch as containerd does it: this program is executed, its reply dialled, its end awaited.
//!
//! No VM is needed. The sockets lie in a directory of the test's own, which is containerd's right
//! since its bootstrap dialect.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use protobuf::Message as _;
use ttrpc::asynchronous::Client;
use ttrpc::context;
use wasmvm_protocol::agent::containerd::api::{ConnectRequest, ConnectResponse, ShutdownRequest};
use wasmvm_protocol::agent::containerd::bootstrap_api::{BootstrapParams, BootstrapResult};
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-wasmvm-v1");
const CAPTURED_STDIN: &[u8] = include_bytes!("../src/command/captures/main-1.stdin");
const CAPTURED_ARGS: &str = include_str!("../src/command/captures/main-1.args");

/// Executes the shim in `bundle`, as containerd does: one pipe for both outputs, read to its end.
fn exec(bundle: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(SHIM)
        .args(args)
        .current_dir(bundle)
        .env("TTRPC_ADDRESS", bundle.join("events"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn captured_args() -> Vec<&'static str> {
    CAPTURED_ARGS
        .lines()
        .filter_map(|line| line.strip_prefix("arg:"))
        .collect()
}

/// The captured launch, with the sockets elsewhere.
fn start(bundle: &Path) -> BootstrapResult {
    let mut params = BootstrapParams::parse_from_bytes(CAPTURED_STDIN).unwrap();
    params.socket_dir = Some(bundle.to_str().unwrap().to_owned());
    let output = exec(bundle, &captured_args(), &params.write_to_bytes().unwrap());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    BootstrapResult::parse_from_bytes(&output.stdout).unwrap()
}

fn socket_of(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap().into()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn start_leaves_a_daemon_that_serves_both_task_versions_until_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let reply = start(dir.path());
    // The daemon holds none of the pipes, or this would have taken until its end.
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!((reply.version, reply.protocol.as_str()), (3, "ttrpc"));
    let socket = socket_of(&reply.address);
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let address_file = fs::read_to_string(dir.path().join("address")).unwrap();
    assert_eq!(address_file, reply.address);

    let client = Client::connect(&reply.address).await.unwrap();
    let deadline = context::with_duration(Duration::from_secs(20));
    let connected = TaskClient::new(client.clone())
        .connect(deadline.clone(), &ConnectRequest::new())
        .await
        .unwrap();
    let mut request = ttrpc::Request::new();
    request.set_service("containerd.task.v2.Task".to_owned());
    request.set_method("Connect".to_owned());
    request.timeout_nano = deadline.timeout_nano;
    let response = client.request(request).await.unwrap();
    let v2 = ConnectResponse::parse_from_bytes(&response.payload).unwrap();
    assert_eq!(v2.shim_pid, connected.shim_pid);

    let daemon = PathBuf::from(format!("/proc/{}", connected.shim_pid));
    let link = |name: &str| fs::read_link(daemon.join(name)).unwrap();
    assert_eq!(link("cwd"), dir.path().canonicalize().unwrap());
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(fd), Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(daemon.join("stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, connected.shim_pid.to_string());

    // A second start of the same name finds it.
    assert_eq!(start(dir.path()).address, reply.address);
    let again = TaskClient::new(client.clone())
        .connect(deadline.clone(), &ConnectRequest::new())
        .await
        .unwrap();
    assert_eq!(again.shim_pid, connected.shim_pid);

    // Its connection may close before the answer has left.
    let _ = TaskClient::new(client)
        .shutdown(deadline, &ShutdownRequest::new())
        .await;
    wait_until("the end of the daemon", || !daemon.join("fd/0").exists());
    assert!(!socket.exists());
}

#[test]
fn a_refused_launch_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = exec(
        dir.path(),
        &["-namespace", "n", "-id", "../t", "start"],
        b"",
    );
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(
        sentence.contains("-id is \"../t\"; allowed are"),
        "{sentence}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn serve_by_hand_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["-namespace", "n", "-id", "t", "serve"];
    let output = exec(dir.path(), &args, b"");
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(
        sentence.contains("standard input is not a listening socket"),
        "{sentence}"
    );
}

#[test]
fn info_needs_no_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let output = exec(dir.path(), &["-info"], b"");
    assert!(output.status.success());
    assert!(
        output
            .stdout
            .starts_with(b"\x0a\x17io.containerd.wasmvm.v1")
    );
}

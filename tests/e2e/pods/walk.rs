//! The main things of a pod, one after the other in one pod: to start it takes longer than each of them.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasmvm_tests::cri::container::Container;
use wasmvm_tests::cri::log;
use wasmvm_tests::cri::node::Node;
use wasmvm_tests::cri::pod::Pod;

use super::Kind;

type Part = fn(Kind, &mut Node, &Pod);

const PARTS: [(&str, Part); 7] = [
    ("two containers, their logs and exit codes", containers),
    ("exec probes", probes),
    ("exec and attach", streams),
    ("a terminal", terminal),
    ("stats", stats),
    ("a container is started once more", second_attempt),
    ("containerd is killed and started again", containerd_restart),
];

/// What CRI says of a process that it has lost.
pub(super) const LOST: [i32; 2] = [137, 255];
/// How long a program and the shim's own end may take to be seen.
const SEEN_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Prints that it is there, and stays.
pub(super) const STAY: &str = "echo up; exec sleep 4321";

/// The parts, and the end of the pod with a container that runs.
pub(super) fn main_things(kind: Kind, node: &mut Node) {
    let pod = kind.pod().hostname("named").run();
    assert!(pod.is_ready());
    assert!(pod.ip().is_some());
    for (name, part) in PARTS {
        eprintln!("{name}");
        part(kind, node, &pod);
    }
    eprintln!("a pod is stopped with a container that runs");
    stop(kind, pod);
}

fn containers(kind: Kind, node: &mut Node, pod: &Pod) {
    let script = "hostname; echo $GIVEN; cat /etc/hostname; exit 7";
    let first = kind
        .shell(pod, "first", script)
        .env("GIVEN", "to the first");
    let first = first.start();
    let script = "echo err >&2; echo $GIVEN; exit 0";
    let second = kind
        .shell(pod, "second", script)
        .env("GIVEN", "to the second");
    let second = second.start();
    assert_eq!(first.until_exited().exit_code, 7);
    assert_eq!(second.until_exited().exit_code, 0);
    assert_eq!(logged(&first, "stdout"), "named\nto the first\nnamed\n");
    assert_eq!(logged(&first, "stderr"), "");
    assert_eq!(logged(&second, "stdout"), "to the second\n");
    assert_eq!(logged(&second, "stderr"), "err\n");
    assert_eq!(node.containers().len(), 2);
    first.remove().expect("it is removed");
    second.remove().expect("it is removed");
    assert!(pod.is_ready());
}

fn logged(container: &Container, stream: &str) -> String {
    log::text_of(&container.log(), stream)
}

fn probes(kind: Kind, _: &mut Node, pod: &Pod) {
    let container = kind.shell(pod, "probed", STAY).start();
    container.until_logged("up");
    let script = "echo fine; echo err >&2; exit 5";
    let probed = container.exec_sync(["/bin/sh", "-c", script]);
    let probed = probed.expect("it runs");
    assert_eq!((probed.exit_code, &probed.stdout[..]), (5, &b"fine\n"[..]));
    assert_eq!(probed.stderr, b"err\n");
    let refused = container.exec_sync(["/absent"]);
    refused
        .expect_err("it is not there")
        .expect_refusal(&["/absent"]);
    assert!(container.is_running());
    container.remove().expect("it is removed");
}

fn streams(kind: Kind, _: &mut Node, pod: &Pod) {
    let script = "while read line; do echo got $line; echo err >&2; done";
    let container = kind.shell(pod, "attached", script).stdin().start();
    let mut attached = container.attach(false);
    attached.write(b"one\n");
    attached.expect("got one\n");
    attached.hang_up();
    // Its input stays open for who comes next.
    let mut attached = container.attach(false);
    attached.write(b"two\n");
    attached.expect("got two\n");
    assert!(container.is_running());

    let script = "read line; echo read $line; echo err >&2; exit 3";
    let mut exec = container.exec(false, ["/bin/sh", "-c", script]);
    exec.write(b"a line\n");
    let ended = exec.end();
    assert_eq!(ended.status(), 3, "{ended}");
    assert_eq!(
        (&*ended.text(), &*ended.error()),
        ("read a line\n", "err\n")
    );
    container.remove().expect("it is removed");
    drop(attached);
}

fn terminal(kind: Kind, _: &mut Node, pod: &Pod) {
    let container = kind.shell(pod, "shell", STAY).start();
    let script = "read line; echo read $line; tty; exec sleep 4321";
    let mut typed = container.exec(true, ["/bin/sh", "-c", script]);
    typed.resize(132, 50);
    typed.write(b"words\n");
    typed.expect("words\r\nread words\r\n/dev/");
    typed.write(b"\x03");
    let ended = typed.end();
    assert_eq!(ended.status(), 130, "{ended}");
    container.remove().expect("it is removed");
}

fn stats(kind: Kind, node: &mut Node, pod: &Pod) {
    let container = kind.shell(pod, "measured", STAY).start();
    container.until_logged("up");
    let stats = container.stats();
    assert!(stats.memory.working_set_bytes.value > 0, "{stats}");
    assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats}");
    let listed = node.container_stats();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].attributes.id, container.id());
    let of_pods = node.pod_stats();
    assert_eq!(of_pods.len(), 1);
    let of_pod = &of_pods[0].linux;
    assert!(of_pod.memory.working_set_bytes.value > 0, "{of_pod:?}");
    // The pod's own interface, which is that of its sandbox' process.
    assert!(of_pod.network.default_interface.is_some(), "{of_pod:?}");
    container.remove().expect("it is removed");
}

fn second_attempt(kind: Kind, _: &mut Node, pod: &Pod) {
    let first = kind.shell(pod, "again", "exit 1").start();
    assert_eq!(first.until_exited().exit_code, 1);
    let second = kind.shell(pod, "again", "echo again; exit 2").attempt(1);
    let second = second.start();
    assert_eq!(second.until_exited().exit_code, 2);
    assert_eq!(logged(&second, "stdout"), "again\n");
    // A kubelet keeps the last one that has ended.
    assert_eq!(first.status().exit_code, 1);
    first.remove().expect("it is removed");
    second.remove().expect("it is removed");
}

fn containerd_restart(kind: Kind, node: &mut Node, pod: &Pod) {
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        "echo first; {}; echo meanwhile; echo >/shared/done; {}; echo last; exit 9",
        until_there("/shared/go"),
        until_there("/shared/end"),
    );
    let container = kind.shell(pod, "stays", &script);
    let container = container.mount(folder.path(), "/shared", false).start();
    container.until_logged("first");
    let pid = container.pid();

    node.kill();
    let write = |name| fs::write(folder.path().join(name), "").expect("written");
    write("go");
    until("the program prints", || folder.path().join("done").exists());
    node.start_again();

    assert!(pod.is_ready());
    assert!(container.is_running());
    assert_eq!(container.pid(), pid);
    container.until_logged("meanwhile");
    let probed = container.exec_sync(["/bin/sh", "-c", "exit 4"]);
    assert_eq!(probed.expect("it runs").exit_code, 4);
    write("end");
    assert_eq!(container.until_exited().exit_code, 9);
    assert_eq!(logged(&container, "stdout"), "first\nmeanwhile\nlast\n");
    let other = kind.shell(pod, "other", STAY).start();
    other.until_logged("up");
    other.stop(1).expect("it stops");
    assert_eq!(other.until_exited().exit_code, kind.stopped);
}

/// Of a script: waits for a file.
pub(super) fn until_there(file: &str) -> String {
    format!("until [ -f {file} ]; do sleep 0.2; done")
}

fn stop(kind: Kind, pod: Pod) {
    let container = kind.shell(&pod, "running", STAY).start();
    container.until_logged("up");
    pod.stop().expect("it stops");
    assert!(!pod.is_ready());
    assert!(LOST.contains(&container.until_exited().exit_code));
    pod.remove();
}

pub(super) fn kill_9(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("the process is there");
}

#[track_caller]
pub(super) fn until(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(
            start.elapsed() < SEEN_MAX,
            "not within {SEEN_MAX:?}: {what}"
        );
        thread::sleep(POLL);
    }
}

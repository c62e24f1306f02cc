//! The main things once more on each other containerd: the launch dialects and both Task services differ, and
//! so does its `ctr`. The rest of the suite runs on the surroundings' own, in the testbed 1.6.

use std::io::Read;

use serde_json::json;
use wasmvm_tests::containerd::{Containerd, Version};
use wasmvm_tests::ctr::ctr;
use wasmvm_tests::exec::Exec;
use wasmvm_tests::task::{Run, Task};
use wasmvm_tests::terminal::CTRL_C;
use wasmvm_tests::{leftovers, shim};

const MIB: u64 = 1 << 20;

#[test]
fn containerd_1_7() {
    main_things(Version::V1_7);
}

#[test]
fn containerd_2() {
    main_things(Version::V2);
}

#[test]
fn a_task_lives_through_upgrades_of_containerd() {
    let before = leftovers::found();
    let mut containerd = Containerd::start(Version::Installed);
    let task = Run::image("probe")
        .args(["/probe", "loop"])
        .flag("--null-io")
        .detached();
    let pid = task.until("RUNNING");
    for version in [Version::V1_7, Version::V2] {
        containerd.stop();
        containerd.start_as(version);
        assert_eq!(task.until("RUNNING"), pid);
        let exec = Exec::of(&task, ["/probe", "exit", "3"]);
        exec.to_end().expect_status(3);
    }
    task.kill("SIGTERM");
    task.until("STOPPED");
    assert_eq!(task.delete(), 143);
    task.forget();
    drop(containerd);
    leftovers::expect_none_since(&before);
}

/// One containerd for all: starting it takes longer than each of them.
fn main_things(version: Version) {
    let mut containerd = Containerd::start(version);
    for (name, scenario) in SCENARIOS {
        eprintln!("{name}");
        let before = leftovers::found();
        scenario(&mut containerd);
        leftovers::expect_none_since(&before);
    }
}

type Scenario = fn(&mut Containerd);

const SCENARIOS: [(&str, Scenario); 7] = [
    ("output, status and stdin", output_status_and_stdin),
    ("a refusal reaches the user", refusal),
    ("kill", kill),
    ("a detached task is removed", detached),
    ("terminals", terminals),
    ("exec, pause, live limits and metrics", requests),
    ("a restart of containerd", restart),
];

fn output_status_and_stdin(_: &mut Containerd) {
    let outcome = Run::image("probe")
        .args(["/probe", "exit", "7"])
        .to_end()
        .expect_status(7);
    assert!(outcome.stdout.is_empty(), "{outcome}");
    let outcome = Run::image("probe")
        .args(["/probe", "cat"])
        .stdin("through the program\n")
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.text(), "through the program\n");
}

fn refusal(_: &mut Containerd) {
    let _ = Run::image("probe")
        .args(["/absent"])
        .to_end()
        .expect_refusal(&["/absent", "not found"]);
}

fn kill(_: &mut Containerd) {
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    let mut begun = [0];
    let stdout = child.stdout.as_mut().expect("piped");
    stdout.read_exact(&mut begun).expect("it has begun");
    task.kill("SIGTERM");
    assert_eq!(child.wait().expect("ctr ends").code(), Some(143));
}

fn detached(_: &mut Containerd) {
    let task = Run::image("probe")
        .flag("--null-io")
        .args(["/probe", "loop"])
        .detached();
    task.until("RUNNING");
    task.remove();
    assert_eq!(task.state(), None);
}

fn terminals(_: &mut Containerd) {
    let (task, mut terminal) = Run::image("busybox").on_terminal();
    terminal.expect("$ ");
    let mut other = Exec::of(&task, ["sh", "-c", "tty && exec sleep 4321"]).on_terminal();
    other.expect("/dev/tty\n");
    other.type_in(CTRL_C);
    let (status, shown) = other.end();
    assert_eq!(status, Some(130), "{shown:?}");
    terminal.resize(132, 50);
    terminal.type_in("tty; exit 5\r");
    terminal.expect("/dev/tty\n");
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(5), "{shown:?}");
}

fn requests(_: &mut Containerd) {
    let task = Run::image("busybox")
        .option("--memory-limit", &(128 * MIB).to_string())
        .flag("--null-io")
        .args(["sh", "-c", "sleep 4321"])
        .detached();
    exec(&task);
    ctr(["task", "pause", task.id()]).expect_status(0);
    task.until("PAUSED");
    ctr(["task", "resume", task.id()]).expect_status(0);
    task.until("RUNNING");
    let limit = json!({ "memory": { "limit": 160 * MIB } });
    shim::update(task.id(), &limit).expect("the limit changes");
    let metrics = ctr(["task", "metrics", task.id()]).expect_status(0).text();
    assert!(metrics.contains("memory.usage"), "{metrics}");
}

fn exec(task: &Task) {
    let outcome = Exec::of(task, ["sh", "-c", "echo in there; exit 3"])
        .to_end()
        .expect_status(3);
    assert_eq!(outcome.text(), "in there\n");
    let _ = Exec::of(task, ["/absent"])
        .to_end()
        .expect_refusal(&["/absent"]);
}

fn restart(containerd: &mut Containerd) {
    let task = Run::image("probe")
        .flag("--null-io")
        .args(["/probe", "loop"])
        .detached();
    let pid = task.until("RUNNING");
    containerd.kill();
    containerd.start_again();
    assert_eq!(task.until("RUNNING"), pid);
    task.kill("SIGINT");
    task.until("STOPPED");
    assert_eq!(task.delete(), 130);
}

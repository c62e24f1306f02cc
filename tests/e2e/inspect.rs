//! `wasmvm inspect`: what an operator is told of a task, and what not.

use std::process::Command;
use std::time::{Duration, Instant};

use wasmvm_tests::ctr::{Outcome, ctr, run};
use wasmvm_tests::task::Run;

/// For the guest to answer once within the half second that it has, under emulation.
const TOLD_MAX: Duration = Duration::from_secs(60);

fn inspect(words: &[&str]) -> Outcome {
    let mut command = Command::new("wasmvm");
    command.arg("inspect").args(words);
    run(command, Vec::new())
}

/// The value at a path, as text.
#[track_caller]
fn value(id: &str, path: &str) -> String {
    let told = inspect(&[id, path]).expect_status(0);
    told.text().trim_end().to_owned()
}

/// The whole tree as text, with the guest's answer in it.
fn tree_with_guest(id: &str) -> String {
    let start = Instant::now();
    loop {
        let text = inspect(&[id]).expect_status(0).text();
        if text.contains("name: (guest) ") {
            return text;
        }
        assert!(start.elapsed() < TOLD_MAX, "the guest is silent:\n{text}");
    }
}

#[test]
fn inspect_tells_the_state_of_all_parts_and_no_argument() {
    const MARK: &str = "mark-of-this-test";
    let task = Run::image("probe")
        .args(["/probe", "loop", MARK])
        .option("--env", "SECRET=mark-of-this-test")
        .flag("--null-io")
        .detached();
    let pid = task.until("RUNNING").to_string();
    let id = task.id();
    assert_eq!(value(id, "task/init/state"), "running");
    assert_eq!(value(id, "task/init/pid"), pid);
    assert_eq!(value(id, "vmm/process/pid"), pid);
    assert_eq!(value(id, "task/vm"), "runs");

    let text = tree_with_guest(id);
    let json = inspect(&["--json", id]).expect_status(0);
    assert!(text.len() < 1 << 20 && json.stdout.len() < 1 << 20);
    let tree: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(tree["task"]["init"]["pid"].to_string(), pid);
    let devices = tree["vmm"]["devices"].as_object();
    assert!(devices.is_some_and(|devices| !devices.is_empty()), "{text}");
    for part in ["      name: vcpu\n", "name: wasmvm-files\n"] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(!text.contains(MARK), "{text}");
    assert!(!String::from_utf8_lossy(&json.stdout).contains(MARK));

    task.kill("SIGKILL");
    task.until("STOPPED");
    assert_eq!(value(id, "task/init/exit_status"), "137");
    assert_eq!(task.delete(), 137);
    let gone = inspect(&[id]);
    assert_eq!((gone.status, gone.text()), (1, String::new()));
    gone.expect_refusal(&["no task", id, "namespace \"default\""]);
}

#[test]
fn inspect_tells_of_a_paused_task_and_of_what_is_not_there() {
    let task = Run::image("probe")
        .args(["/probe", "loop"])
        .flag("--null-io")
        .detached();
    let id = task.id();
    ctr(["task", "pause", id]).expect_status(0);
    assert_eq!(value(id, "task/vm"), "is paused");
    assert!(value(id, "guest").starts_with("is not asked"));
    assert_ne!(value(id, "vmm/devices"), "");
    let absent = inspect(&[id, "task/init/nothing"]);
    assert_eq!(absent.status, 1, "{absent}");
    absent.expect_refusal(&["task/init/nothing", "/task/init has: pid, state, streams"]);
    let elsewhere = inspect(&["--namespace", "elsewhere", id]);
    assert_eq!(elsewhere.status, 1, "{elsewhere}");
    elsewhere.expect_refusal(&["no task", "namespace \"elsewhere\""]);
    ctr(["task", "resume", id]).expect_status(0);
    task.kill("SIGKILL");
    task.until("STOPPED");
}

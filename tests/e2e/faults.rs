//! The fault walk: `kill -9` of our own processes, and nothing is left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasmvm_tests::leftovers;
use wasmvm_tests::task::{Run, Task};

/// How long a process may take to appear.
const APPEAR_MAX: Duration = Duration::from_secs(60);

/// The processes of this program whose parent or command line belongs to the task.
fn processes(program: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim_end() == program
        })
        .collect()
}

/// The first process of this program that is not among `before`.
fn appears(program: &str, before: &[i32]) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(pid) = processes(program)
            .into_iter()
            .find(|pid| !before.contains(pid))
        {
            return pid;
        }
        assert!(start.elapsed() < APPEAR_MAX, "no {program} has appeared");
    }
}

fn kill_9(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    kill_process(pid, Signal::KILL).expect("the process is there");
}

/// The shim's daemon of a running task: the VMM's parent.
fn parent_of(pid: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a stat line");
    rest.split_ascii_whitespace()
        .nth(1)
        .expect("a parent")
        .parse()
        .expect("a number")
}

/// Waits until containerd has seen the task's end, then removes it as an operator does.
fn rm(task: &Task) {
    let start = Instant::now();
    while task.state().is_some_and(|(_, state)| state == "RUNNING") {
        assert!(
            start.elapsed() < APPEAR_MAX,
            "containerd has not seen the exit"
        );
    }
    task.remove();
    assert_eq!(task.state(), None);
}

#[test]
fn kill_9_of_the_vmm_while_running() {
    let before = leftovers::found();
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    let pid = task.until("RUNNING");
    kill_9(i32::try_from(pid).expect("a pid"));
    assert_eq!(child.wait().expect("ctr ends").code(), Some(137));
    rm(&task);
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_the_vmm_before_the_agent_answers() {
    let before = leftovers::found();
    let others = processes("wasmvm-vmm");
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    kill_9(appears("wasmvm-vmm", &others));
    assert!(!child.wait().expect("ctr ends").success(), "Create fails");
    rm(&task);
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_the_shim_while_running() {
    let before = leftovers::found();
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    let pid = task.until("RUNNING");
    kill_9(parent_of(pid));
    let _ = child.wait().expect("ctr ends");
    rm(&task);
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "the VMM ends with its shim"
    );
    leftovers::expect_none_but_fifos_since(&before);
}

#[test]
fn kill_9_of_the_shim_before_the_agent_answers() {
    let before = leftovers::found();
    let others = processes("wasmvm-vmm");
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    let vmm = appears("wasmvm-vmm", &others);
    kill_9(parent_of(u32::try_from(vmm).expect("a pid")));
    assert!(!child.wait().expect("ctr ends").success(), "Create fails");
    rm(&task);
    leftovers::expect_none_since(&before);
}

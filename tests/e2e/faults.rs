//! `kill -9` of our own processes while a program runs, and nothing is left. The walk through all steps: `walk`.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasmvm_tests::leftovers;
use wasmvm_tests::process;
use wasmvm_tests::task::{Run, Task};

/// How long containerd may take to see an end.
const SEEN_MAX: Duration = Duration::from_secs(60);

fn kill_9(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("the process is there");
}

/// Waits until containerd has seen the task's end, then removes it as an operator does.
fn rm(task: &Task) {
    let start = Instant::now();
    while task.state().is_some_and(|(_, state)| state == "RUNNING") {
        assert!(
            start.elapsed() < SEEN_MAX,
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
    kill_9(pid);
    assert_eq!(child.wait().expect("ctr ends").code(), Some(137));
    rm(&task);
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_the_file_server_while_running() {
    let before = leftovers::found();
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    kill_9(process::file_server_of(task.until("RUNNING")));
    assert_eq!(child.wait().expect("ctr ends").code(), Some(137));
    rm(&task);
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_the_shim_while_running() {
    let before = leftovers::found();
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    let pid = task.until("RUNNING");
    kill_9(process::parent_of(pid));
    let _ = child.wait().expect("ctr ends");
    rm(&task);
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "the VMM ends with its shim"
    );
    leftovers::expect_none_but_fifos_since(&before);
}

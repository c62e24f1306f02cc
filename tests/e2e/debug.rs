//! What an operator sees of a task that is stuck.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasmvm_tests::containerd::{Containerd, Version};
use wasmvm_tests::ctr::ctr;
use wasmvm_tests::leftovers;
use wasmvm_tests::process::parent_of;
use wasmvm_tests::task::Run;

/// For the shim to tell, and containerd to copy it into its log, under emulation.
const TOLD_MAX: Duration = Duration::from_secs(60);

/// Asks the shim, and waits for containerd's log to hold a line with each of `parts` that was not there.
fn ask(containerd: &Containerd, shim: u32, parts: &[&str]) -> String {
    let before = containerd.log().len();
    let shim = i32::try_from(shim).expect("a pid");
    kill_process(Pid::from_raw(shim).expect("a pid"), Signal::USR1).expect("the shim lives");
    let start = Instant::now();
    loop {
        let log = containerd.log();
        let told = log[before..].to_owned();
        if parts.iter().all(|part| told.contains(part)) {
            return told;
        }
        assert!(start.elapsed() < TOLD_MAX, "{parts:?} are not in:\n{told}");
        std::thread::yield_now();
    }
}

#[test]
fn a_signal_makes_the_shim_tell_what_everything_does() {
    let before = leftovers::found();
    let containerd = Containerd::start(Version::Installed);
    let task = Run::image("probe")
        .args(["/probe", "loop"])
        .flag("--null-io")
        .detached();
    let pid = task.until("RUNNING");
    let shim = parent_of(pid);
    let id = task.id();
    let own = format!("look: task {id} is running; pid {pid}; ");
    let program = format!("look: guest: task {id}: thread ");
    let parts = [
        own.as_str(),
        "look: its VM runs",
        "look: VMM: thread ",
        "look: file server: thread ",
        &program,
    ];
    let told = ask(&containerd, shim, &parts);
    // What stands in quotes in a message has them escaped.
    assert!(told.contains(r#"\"vcpu\" is "#), "{told}");
    ctr(["task", "pause", task.id()]).expect_status(0);
    let told = ask(&containerd, shim, &["look: its VM is paused", "vcpu"]);
    assert!(!told.contains("guest: "), "{told}");
    ctr(["task", "resume", task.id()]).expect_status(0);
    task.kill("SIGKILL");
    task.until("STOPPED");
    assert_eq!(task.delete(), 137);
    drop(containerd);
    leftovers::expect_none_since(&before);
}

//! Ending a program from outside, as nobody inside can hear a signal.

use std::io::Read;
use std::process::Child;

use wasmvm_tests::ctr::ctr;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::{Run, Task};

/// An endless loop that has begun.
fn looping() -> (Task, Child) {
    let (task, mut child) = Run::image("probe").args(["/probe", "loop"]).in_background();
    let mut said = [0; 8];
    child
        .stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut said)
        .expect("it has begun");
    assert_eq!(&said, b"looping\n");
    (task, child)
}

#[test]
fn signals_end_an_endless_loop_with_their_status() {
    for (signal, status) in [
        ("SIGTERM", 143),
        ("SIGINT", 130),
        ("SIGKILL", 137),
        ("SIGPIPE", 141),
    ] {
        let before = leftovers::found();
        let (task, mut child) = looping();
        task.kill(signal);
        let ended = child.wait().expect("ctr ends");
        assert_eq!(ended.code(), Some(status), "{signal}");
        drop(task);
        leftovers::expect_none_since(&before);
    }
}

#[test]
fn a_signal_that_is_ignored_by_default_changes_nothing() {
    let (task, mut child) = looping();
    task.kill("SIGWINCH");
    task.until("RUNNING");
    task.kill("SIGTERM");
    assert_eq!(child.wait().expect("ctr ends").code(), Some(143));
}

#[test]
fn a_created_task_can_be_killed_before_it_starts() {
    let before = leftovers::found();
    let id = wasmvm_tests::task::fresh_id();
    wasmvm_tests::ctr::import_image("probe");
    let image = "wasmvm.example/probe:latest";
    ctr([
        "container",
        "create",
        "--runtime",
        wasmvm_tests::ctr::RUNTIME,
        image,
        &id,
        "/probe",
        "loop",
    ])
    .expect_status(0);
    // `ctr task start` creates and starts; `rm -f` of what never ran must work too.
    ctr(["container", "rm", &id]).expect_status(0);
    leftovers::expect_none_since(&before);
}

#[test]
fn killing_what_has_ended_says_so() {
    let task = Run::image("probe").args(["/probe", "exit", "0"]).detached();
    task.until("STOPPED");
    ctr(["task", "kill", task.id()]).expect_refusal(&["not found"]);
}

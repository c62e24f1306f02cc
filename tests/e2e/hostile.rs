//! Guests that have been taken over (`tests/hostile/init.c`): the host's processes stay bounded in time,
//! memory and words, other tasks run, and nothing is left.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use wasmvm_tests::ctr::{self, Outcome};
use wasmvm_tests::install::OtherAgent;
use wasmvm_tests::leftovers;
use wasmvm_tests::process::{named, parent_of, peak_kib};
use wasmvm_tests::task::{Run, Task};

/// The shim gives Create a minute; around it a VM boots and ends, under emulation.
const CREATE_FAILS_MAX: Duration = Duration::from_secs(150);
/// From SIGKILL to the end of `ctr run`. The shim's own bounds add up to less than 15 s.
const KILL_MAX: Duration = Duration::from_secs(60);
/// Most memory a shim may ever have had, KiB. A frame of ttrpc's largest size, 4 MiB, is in it.
const SHIM_KIB_MAX: u64 = 32 << 10;
/// Most that `ctr` may print of what a guest says, bytes.
const SENTENCE_BYTES_MAX: usize = 8 << 10;
/// Most that one guest may add to containerd's log, bytes.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// A run in a guest that does `mode`.
fn hostile(agent: &OtherAgent, mode: &str) -> Run {
    Run::image("tiny")
        .option("--runtime", &agent.runtime())
        .option("--env", &format!("HOSTILE={mode}"))
}

fn installed() -> OtherAgent {
    let files = std::env::var("WASMVM_FILES")
        .expect("WASMVM_FILES has hostile.cpio; tests/run-e2e sets it");
    OtherAgent::with(&PathBuf::from(files).join("hostile.cpio"))
}

/// Another tenant's task is none the worse.
#[track_caller]
fn an_ordinary_task_runs() {
    let outcome = Run::image("tiny").to_end().expect_status(0);
    assert_eq!(outcome.text(), "tiny\n");
}

#[track_caller]
fn expect_small(shim: u32) {
    let peak = peak_kib(shim).expect("the shim is there");
    println!("the shim's peak is {peak} KiB");
    assert!(peak <= SHIM_KIB_MAX, "a shim had {peak} KiB");
}

/// How much containerd and its shims have logged, bytes.
fn logged() -> u64 {
    let path = std::env::var("WASMVM_CONTAINERD_LOG")
        .expect("WASMVM_CONTAINERD_LOG names containerd's log; tests/where sets it");
    fs::metadata(path).expect("containerd has a log").len()
}

#[track_caller]
fn ends_within(child: &mut Child, limit: Duration) -> Option<i32> {
    assert!(ctr::wait(child, limit), "still there after {limit:?}");
    child.wait().expect("the child can be waited for").code()
}

#[test]
fn a_guest_that_never_answers_fails_the_create_in_bounded_time() {
    let before = leftovers::found();
    let agent = installed();
    let log = logged();
    let guests: Vec<_> = ["silent", "endless-frame", "flood-answers"]
        .map(|mode| hostile(&agent, mode).in_background())
        .into();
    an_ordinary_task_runs();
    for shim in named("containerd-shim") {
        expect_small(shim);
    }
    let count = guests.len() as u64;
    for (task, mut child) in guests {
        let status = ends_within(&mut child, CREATE_FAILS_MAX);
        let error = child.wait_with_output().expect("its output").stderr;
        let error = String::from_utf8_lossy(&error).into_owned();
        assert_ne!(status, Some(0), "{error}");
        assert!(error.contains("did not answer Create"), "{error}");
        drop(task);
    }
    leftovers::expect_none_since(&before);
    let grown = logged() - log;
    assert!(grown <= count * LOG_BYTES_MAX, "{grown} bytes of log");
}

#[test]
fn a_guest_that_answers_nonsense_is_refused_in_few_printable_words() {
    let agent = installed();
    for mode in ["garbage", "oversized", "long-refusal"] {
        let before = leftovers::found();
        let outcome: Outcome = hostile(&agent, mode).to_end();
        assert_ne!(outcome.status, 0, "{mode}: {outcome}");
        let error = outcome.error();
        assert!(error.len() <= SENTENCE_BYTES_MAX, "{mode}: {outcome}");
        let printable = |c: char| c == '\n' || !c.is_control();
        assert!(error.chars().all(printable), "{mode}: {error:?}");
        leftovers::expect_none_since(&before);
    }
}

/// Runs a guest in this mode beside an ordinary task, then ends it by SIGKILL.
fn flooding_is_bounded(mode: &str) {
    let before = leftovers::found();
    let agent = installed();
    let log = logged();
    let (task, mut child): (Task, Child) = hostile(&agent, mode).in_background();
    let shim = parent_of(task.until("RUNNING"));
    an_ordinary_task_runs();
    expect_small(shim);
    task.kill("SIGKILL");
    drop(child.stdout.take());
    // 141: ctr itself, when the flood is its output and its reader is gone.
    let status = ends_within(&mut child, KILL_MAX);
    assert!(matches!(status, Some(137) | None), "{status:?}");
    drop(task);
    leftovers::expect_none_but_fifos_since(&before);
    let grown = logged() - log;
    assert!(grown <= LOG_BYTES_MAX, "{grown} bytes of log");
}

#[test]
fn a_flood_of_output_that_nobody_reads_is_bounded() {
    flooding_is_bounded("flood-stdout");
}

#[test]
fn a_flooded_console_is_bounded() {
    flooding_is_bounded("flood-console");
}

#[test]
fn a_guest_that_dials_every_port_of_the_host_reaches_nothing() {
    flooding_is_bounded("dial");
}

#[test]
fn sigkill_ends_a_guest_that_does_not_obey() {
    let before = leftovers::found();
    let agent = installed();
    // One does not answer, the other says yes and goes on.
    for mode in ["deaf", "immortal"] {
        let (task, mut child) = hostile(&agent, mode).in_background();
        task.until("RUNNING");
        task.kill("SIGKILL");
        assert_eq!(ends_within(&mut child, KILL_MAX), Some(137), "{mode}");
    }
    leftovers::expect_none_since(&before);
}

#[test]
fn sigterm_ends_a_guest_that_does_not_answer() {
    let agent = installed();
    let (task, mut child) = hostile(&agent, "deaf").in_background();
    task.until("RUNNING");
    task.kill("SIGTERM");
    assert_eq!(ends_within(&mut child, KILL_MAX), Some(137));
}

#[test]
fn a_guest_whose_agent_is_of_no_use_any_more_has_ended() {
    let agent = installed();
    // One closes its connection, the other answers every open request with a stream of data.
    for mode in ["hang-up", "flood-data"] {
        let before = leftovers::found();
        let outcome = hostile(&agent, mode).to_end();
        assert_eq!(outcome.status, 137, "{mode}: {outcome}");
        leftovers::expect_none_since(&before);
    }
}

#[test]
fn a_status_beyond_a_byte_is_255() {
    let agent = installed();
    let outcome = hostile(&agent, "impossible-status").to_end();
    assert_eq!(outcome.status, 255, "{outcome}");
}

//! A task that stands still, and what works all the same.

use std::fs;
use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Duration;

use wasmvm_tests::ctr::ctr;
use wasmvm_tests::exec::Exec;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::{Run, Task};

/// The processor time of a process so far: fields 14 and 15 of `/proc/PID/stat`, clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields = stat
        .rsplit_once(')')
        .expect("a name")
        .1
        .split_ascii_whitespace();
    let times = fields.skip(11).take(2);
    times
        .map(|time| time.parse::<u64>().expect("a number"))
        .sum()
}

fn pause(task: &Task) {
    ctr(["task", "pause", task.id()]).expect_status(0);
    task.until("PAUSED");
}

#[test]
fn a_paused_task_uses_no_processor_and_goes_on_where_it_was() {
    let numbers: Vec<_> = (1..1000).map(|number| number.to_string()).collect();
    let script = format!(
        "for i in {}; do echo $i; sleep 0.1; done",
        numbers.join(" ")
    );
    let (task, mut child) = Run::image("busybox")
        .args(["sh", "-c", &script])
        .in_background();
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || -> u64 {
        let line = lines.next().expect("it counts").expect("readable");
        line.parse().expect("a number")
    };
    assert_eq!(next(), 1);
    let pid = task.until("RUNNING");
    pause(&task);
    let before = ticks(pid);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(ticks(pid), before, "a paused VM runs");
    assert_eq!(task.pids(), [pid]);
    Exec::of(&task, ["echo"])
        .to_end()
        .expect_refusal(&["is paused; resume it first"]);
    ctr(["task", "pause", task.id()]).expect_refusal(&["is paused"]);
    ctr(["task", "delete", task.id()]).expect_refusal(&["failed precondition"]);
    ctr(["task", "resume", task.id()]).expect_status(0);
    task.until("RUNNING");
    ctr(["task", "resume", task.id()]).expect_refusal(&["is not paused"]);
    for expected in 2..20 {
        assert_eq!(next(), expected, "no line is lost");
    }
    task.kill("SIGKILL");
    assert_eq!(child.wait().expect("ctr ends").code(), Some(137));
}

#[test]
fn a_paused_task_is_killed_and_removed() {
    let before = leftovers::found();
    let idle = || {
        let task = Run::image("busybox")
            .args(["sleep", "4321"])
            .flag("--null-io")
            .detached();
        task.until("RUNNING");
        task
    };
    let task = idle();
    pause(&task);
    task.kill("SIGKILL");
    task.until("STOPPED");
    assert_eq!(task.delete(), 137);
    let task = idle();
    pause(&task);
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn sigstop_and_sigcont_pause_and_resume_and_other_signals_wait() {
    let task = Run::image("busybox")
        .args(["sleep", "4321"])
        .flag("--null-io")
        .detached();
    task.until("RUNNING");
    task.kill("SIGSTOP");
    task.until("PAUSED");
    task.kill("SIGTERM");
    task.until("PAUSED");
    task.kill("SIGCONT");
    task.until("STOPPED");
    assert_eq!(task.delete(), 143);
}

#[test]
fn a_signal_to_all_ends_the_execs_too() {
    let task = Run::image("busybox")
        .args(["sleep", "4321"])
        .flag("--null-io")
        .detached();
    let pid = task.until("RUNNING");
    Exec::of(&task, ["sleep", "4321"]).detached();
    let pids = task.pids();
    assert_eq!((pids.len(), pids[0]), (2, pid));
    // No process of the host can have such a pid (PID_MAX_LIMIT).
    assert!(pids[1] > 4_194_304, "{pids:?}");
    ctr(["task", "kill", "--all", "--signal", "SIGTERM", task.id()]).expect_status(0);
    task.until("STOPPED");
    assert_eq!(task.delete(), 143);
}

#[test]
fn the_time_of_day_is_right_after_a_pause() {
    let task = Run::image("busybox")
        .args(["sleep", "4321"])
        .flag("--null-io")
        .detached();
    task.until("RUNNING");
    pause(&task);
    thread::sleep(Duration::from_secs(4));
    ctr(["task", "resume", task.id()]).expect_status(0);
    let seconds = |text: &str| -> u64 { text.trim().parse().expect("seconds") };
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let before = epoch.elapsed().expect("after 1970").as_secs();
    let inside = seconds(
        &Exec::of(&task, ["date", "+%s"])
            .to_end()
            .expect_status(0)
            .text(),
    );
    let after = epoch.elapsed().expect("after 1970").as_secs();
    assert!(
        (before..=after + 1).contains(&inside),
        "{before} {inside} {after}"
    );
}

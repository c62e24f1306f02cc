//! Further programs in a running task.

use std::io::{BufRead, BufReader};

use wasmvm_tests::ctr::ctr;
use wasmvm_tests::exec::Exec;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::{Run, Task};

/// A task that waits to be used.
fn waiting() -> Task {
    let task = Run::image("busybox")
        .args(["sh", "-c", "top"])
        .flag("--null-io")
        .detached();
    task.until("RUNNING");
    task
}

#[test]
fn an_exec_has_streams_a_status_and_the_tasks_files() {
    let before = leftovers::found();
    let task = waiting();
    let outcome = Exec::of(&task, ["sh", "-c", "cat > /tmp/kept; echo err >&2; exit 7"])
        .stdin("from the first\n")
        .to_end()
        .expect_status(7);
    assert_eq!(
        (outcome.text().as_str(), outcome.error().as_str()),
        ("", "err\n")
    );
    let outcome = Exec::of(&task, ["cat", "/tmp/kept"]).to_end();
    assert_eq!(outcome.expect_status(0).text(), "from the first\n");
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn large_input_and_output_of_an_exec_arrive_exactly() {
    let task = waiting();
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let outcome = Exec::of(&task, ["cat"])
        .stdin(bytes.clone())
        .to_end()
        .expect_status(0);
    assert!(outcome.stdout == bytes, "the copy differs");
}

#[test]
fn an_exec_has_its_own_directory_and_user() {
    let task = waiting();
    let outcome = Exec::of(&task, ["sh", "-c", "pwd; ls -d /root/."])
        .option("--cwd", "/etc")
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.text(), "/etc\n/root/.\n");
    let outcome = Exec::of(&task, ["ls", "/root"])
        .option("--user", "1000")
        .to_end()
        .expect_status(1);
    assert!(outcome.error().contains("Permission denied"), "{outcome}");
}

#[test]
fn what_cannot_run_fails_the_exec_and_not_the_task() {
    let task = waiting();
    for (program, part) in [("absent", "not found"), ("/etc/passwd", "WebAssembly")] {
        let _ = Exec::of(&task, [program])
            .to_end()
            .expect_refusal(&[program, part]);
    }
    let outcome = Exec::of(&task, ["echo", "still here"]).to_end();
    assert_eq!(outcome.expect_status(0).text(), "still here\n");
    task.until("RUNNING");
}

#[test]
fn many_execs_at_once_keep_apart() {
    let task = waiting();
    let children: Vec<_> = (0..8)
        .map(|number| {
            let script = format!("sleep 1; echo {number}; exit {number}");
            Exec::of(&task, ["sh", "-c", &script]).in_background()
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let ended = child.wait_with_output().expect("ctr ends");
        assert_eq!(ended.status.code(), i32::try_from(number).ok());
        assert_eq!(ended.stdout, format!("{number}\n").into_bytes());
    }
}

#[test]
fn a_signal_ends_one_exec_alone() {
    let task = waiting();
    let exec = Exec::of(&task, ["sh", "-c", "echo up; sleep 4321"]);
    let id = exec.id().to_owned();
    let mut child = exec.in_background();
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("it prints").expect("readable");
    assert_eq!(first, "up");
    let listed = ctr(["task", "ps", task.id()]).expect_status(0).text();
    assert!(listed.contains(&id), "{listed}");
    ctr([
        "task",
        "kill",
        "--signal",
        "SIGTERM",
        "--exec-id",
        &id,
        task.id(),
    ])
    .expect_status(0);
    assert_eq!(child.wait().expect("ctr ends").code(), Some(143));
    task.until("RUNNING");
}

#[test]
fn the_end_of_init_ends_its_execs() {
    let before = leftovers::found();
    let task = waiting();
    let mut child = Exec::of(&task, ["sh", "-c", "echo up; sleep 4321"]).in_background();
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("it prints").expect("readable");
    assert_eq!(first, "up");
    task.kill("SIGKILL");
    assert_eq!(child.wait().expect("ctr ends").code(), Some(137));
    task.until("STOPPED");
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn there_is_no_exec_in_what_has_ended() {
    let task = Run::image("busybox").args(["true"]).detached();
    task.until("STOPPED");
    let outcome = Exec::of(&task, ["true"]).to_end();
    assert_ne!(outcome.status, 0, "{outcome}");
}

#[test]
fn a_detached_exec_runs_on_by_itself() {
    let task = waiting();
    Exec::of(&task, ["sh", "-c", "touch /tmp/done"]).detached();
    let script = "until [ -f /tmp/done ]; do sleep 0.1; done; echo seen";
    let outcome = Exec::of(&task, ["sh", "-c", script]).to_end();
    assert_eq!(outcome.expect_status(0).text(), "seen\n");
}

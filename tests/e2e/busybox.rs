//! The example image `busybox` as a user's first container: a shell that is talked to, scripts that run
//! for long. What the shell and its applets do is checked by the image's own cases (see [`crate::examples`]).

use std::io::{BufRead, BufReader, Write};

use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

#[test]
fn the_shell_answers_line_by_line_and_gives_its_status() {
    let (_task, mut child) = Run::image("busybox").in_background();
    let mut input = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    for (command, answer) in [
        ("echo hello", "hello"),
        ("cd /etc; ls passwd", "passwd"),
        ("cat hostname 2>/dev/null | wc -l", "1"),
    ] {
        writeln!(input, "{command}").expect("the shell reads");
        let line = lines.next().expect("the shell answers");
        assert_eq!(line.expect("readable"), answer, "{command}");
    }
    writeln!(input, "exit 5").expect("the shell reads");
    assert_eq!(child.wait().expect("ctr ends").code(), Some(5));
}

#[test]
fn a_loop_that_logs_is_heard_while_it_runs_and_ended_by_sigterm() {
    let before = leftovers::found();
    let script = "while true; do echo still here; sleep 0.2; done";
    let (task, mut child) = Run::image("busybox")
        .args(["sh", "-c", script])
        .in_background();
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    for line in lines.by_ref().take(3) {
        assert_eq!(line.expect("readable"), "still here");
    }
    task.until("RUNNING");
    task.kill("SIGTERM");
    assert_eq!(child.wait().expect("ctr ends").code(), Some(143));
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn devices_lie_among_what_the_spec_mounts_below_dev() {
    let script = "echo kept > /dev/shm/a && cat /dev/shm/a; echo lost > /dev/null; cat /dev/null; \
                  head -c 5 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; echo x > /dev/full";
    let outcome = Run::image("busybox")
        .args(["sh", "-c", script])
        .to_end()
        .expect_status(1);
    assert_eq!(outcome.text(), "kept\n5\n5\n");
    assert!(outcome.error().contains("No space left"), "{outcome}");
}

#[test]
fn top_and_a_long_sleep_stay_until_they_are_ended() {
    for arguments in [["sh", "-c", "top"], ["sh", "-c", "sleep 4321"]] {
        let task = Run::image("busybox")
            .args(arguments)
            .flag("--null-io")
            .detached();
        task.until("RUNNING");
        task.kill("SIGKILL");
        task.until("STOPPED");
    }
}

#[test]
fn relative_paths_start_at_the_working_directory() {
    let outcome = Run::image("busybox")
        .option("--cwd", "/etc")
        .args(["sh", "-c", "pwd; cat hostname; cd ..; pwd"])
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.text(), "/etc\nlocalhost\n/\n");
}

#[test]
fn a_program_learns_who_and_where_it_is() {
    let script = "id -u; id -g; hostname; head -n 1 /proc/self/status
        echo other > /proc/self/comm || echo refused; test -e /proc/1 || echo alone";
    let outcome = Run::image("busybox").with_spec(|spec| {
        spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
        spec["process"]["user"] = serde_json::json!({ "uid": 33, "gid": 7 });
        spec["hostname"] = "far-away".into();
    });
    let text = outcome.expect_status(0).text();
    let (said, rest) = text.split_once("Name:").expect("a status");
    assert_eq!(said, "33\n7\nfar-away\n");
    let rest: Vec<_> = rest.lines().skip(1).collect();
    assert_eq!(rest, ["refused", "alone"]);
}

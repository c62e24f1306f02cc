//! Programs on a terminal, and somebody who types.

use wasmvm_tests::exec::Exec;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;
use wasmvm_tests::terminal::{CTRL_C, CTRL_D};

#[test]
fn a_shell_on_a_terminal_echoes_answers_and_ends_at_its_end_of_input() {
    let before = leftovers::found();
    let (task, mut terminal) = Run::image("busybox").on_terminal();
    terminal.expect("$ ");
    terminal.type_in("tty; echo stderr is here >&2\r");
    terminal.expect("tty; echo stderr is here >&2\n");
    terminal.expect("/dev/tty\nstderr is here\n$ ");
    terminal.type_in("cat\rline\r");
    terminal.expect("line\nline\n");
    terminal.type_in(CTRL_D);
    terminal.expect("$ ");
    terminal.type_in("false\r");
    terminal.expect("$ ");
    terminal.type_in(CTRL_D);
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(1), "{shown:?}");
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn ctrl_c_ends_what_runs_with_130() {
    let (_task, mut terminal) = Run::image("busybox")
        .args(["sh", "-c", "echo up; sleep 4321"])
        .on_terminal();
    terminal.expect("up\n");
    terminal.type_in(CTRL_C);
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(130), "{shown:?}");
    assert!(shown.contains("^C"), "{shown:?}");
}

#[test]
fn a_window_may_change_its_size() {
    let (_task, mut terminal) = Run::image("busybox").on_terminal();
    terminal.expect("$ ");
    for (columns, rows) in [(132, 50), (1, 1), (u16::MAX, u16::MAX), (80, 24)] {
        terminal.resize(columns, rows);
    }
    terminal.type_in("echo still; exit 4\r");
    terminal.expect("\nstill\n");
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(4), "{shown:?}");
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    let task = Run::image("busybox")
        .args(["sh", "-c", "top"])
        .flag("--null-io")
        .detached();
    task.until("RUNNING");
    let mut terminal = Exec::of(&task, ["sh"]).on_terminal();
    terminal.expect("$ ");
    terminal.type_in("tty && exec sleep 4321\r");
    terminal.expect("/dev/tty\n");
    terminal.type_in(CTRL_C);
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(130), "{shown:?}");
    task.until("RUNNING");
}

#[test]
fn much_output_on_a_terminal_arrives_whole() {
    // It waits to be dismissed: ctr before 1.6.22 closes its FIFOs when a task ends, read or not.
    let (_task, mut terminal) = Run::image("busybox")
        .args(["sh", "-c", "seq 1 20000; echo end; read; exit 3"])
        .on_terminal();
    for number in [1, 9_999, 19_999, 20_000] {
        terminal.expect(&format!("{number}\n"));
    }
    terminal.expect("end\n");
    terminal.type_in("\r");
    let (status, shown) = terminal.end();
    assert_eq!(status, Some(3), "{shown:?}");
}

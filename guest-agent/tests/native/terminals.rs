//! Programs with a terminal.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ttrpc::Code;

use crate::guest::{Guest, Streams};
use crate::programs;

/// Runs a program with a terminal; the shim's ends of what is typed and what is shown.
async fn with_terminal(guest: &Guest) -> (UnixStream, UnixStream) {
    let (streams, [stdin, stdout, _unused]) = guest.streams().await;
    guest.create(|_| {}, streams.terminal()).await.unwrap();
    guest.start().await.unwrap();
    (stdin, stdout)
}

/// Blocking reads beside the agent.
async fn read_exactly(stream: &UnixStream, count: usize) -> String {
    let mut stream = stream.try_clone().unwrap();
    let read = move || {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

async fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let read = move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
async fn a_module_sees_that_all_three_are_a_terminal() {
    let guest = Guest::with(programs::ISATTY).await;
    let _ends = with_terminal(&guest).await;
    assert_eq!(guest.wait().await, 0b111);
    let plain = Guest::with(programs::ISATTY).await;
    assert_eq!(plain.run(|_| {}).await.status, 0);
}

#[tokio::test]
async fn a_component_sees_it_too() {
    let guest = Guest::with(programs::ISATTY_COMPONENT).await;
    let _ends = with_terminal(&guest).await;
    assert_eq!(guest.wait().await, 0);
    let plain = Guest::with(programs::ISATTY_COMPONENT).await;
    assert_eq!(plain.run(|_| {}).await.status, 1);
}

#[tokio::test]
async fn lines_are_edited_echoed_and_ended_by_control_d() {
    let guest = Guest::with(programs::CAT).await;
    let (mut stdin, stdout) = with_terminal(&guest).await;
    stdin.write_all(b"ab\x7fc\r").unwrap();
    // The echo, and then what cat was given.
    assert_eq!(read_exactly(&stdout, 12).await, "ab\x08 \x08c\r\nac\r\n");
    stdin.write_all(b"\x04").unwrap();
    assert_eq!(guest.wait().await, 0);
    assert!(read_all(stdout).await.is_empty());
}

#[tokio::test]
async fn control_c_and_control_backslash_end_a_busy_program() {
    for (typed, status) in [(b"\x03", 130), (b"\x1c", 131)] {
        let guest = Guest::with(programs::LOOP).await;
        let (mut stdin, stdout) = with_terminal(&guest).await;
        stdin.write_all(typed).unwrap();
        assert_eq!(guest.wait().await, status);
        let shown = read_all(stdout).await;
        assert!(shown == b"^C" || shown == b"^\\", "{shown:?}");
    }
}

#[tokio::test]
async fn everything_that_was_written_before_the_end_arrives() {
    let guest = Guest::with(programs::WRITES_4_MB).await;
    let (_stdin, stdout) = with_terminal(&guest).await;
    let (shown, status) = tokio::join!(read_all(stdout), guest.wait());
    assert_eq!(status, 0);
    assert_eq!(shown.len(), 4_000_000);
}

#[tokio::test]
async fn what_was_written_before_a_signal_arrives() {
    let guest = Guest::with(programs::CAT).await;
    let (mut stdin, stdout) = with_terminal(&guest).await;
    stdin.write_all(b"x\r").unwrap();
    assert_eq!(read_exactly(&stdout, 6).await, "x\r\nx\r\n");
    guest.kill(9).await.unwrap();
    assert_eq!(guest.wait().await, 137);
    assert!(read_all(stdout).await.is_empty());
}

#[tokio::test]
async fn the_end_of_the_stdin_stream_is_no_end_of_file() {
    let guest = Guest::with(programs::CAT).await;
    let (mut stdin, stdout) = with_terminal(&guest).await;
    stdin.write_all(b"x\r").unwrap();
    drop(stdin);
    assert_eq!(read_exactly(&stdout, 6).await, "x\r\nx\r\n");
    assert!(guest.is("running").await);
}

#[tokio::test]
async fn a_terminal_is_resized_while_its_program_runs() {
    let guest = Guest::with(programs::LOOP).await;
    let _ends = with_terminal(&guest).await;
    guest.init().resize(132, 43).await.unwrap();
    let (code, _) = guest.init().resize(70_000, 43).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    guest.kill(9).await.unwrap();
    guest.wait().await;
    let (code, _) = guest.init().resize(132, 43).await.unwrap_err();
    assert_eq!(code, Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn without_a_terminal_there_is_nothing_to_resize() {
    let guest = Guest::with(programs::LOOP).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.init().resize(80, 24).await.unwrap();
}

#[tokio::test]
async fn an_exec_has_a_terminal_of_its_own() {
    let guest = Guest::with(programs::LOOP).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.fill_slot(1, programs::CAT);
    let (streams, [mut stdin, stdout, _unused]) = guest.streams_of("cat").await;
    let edit = |program: &mut crate::guest::Program| {
        program.slot = 1;
        program.uid = 1000;
    };
    guest.exec("cat", edit, streams.terminal()).await.unwrap();
    let cat = guest.process("cat");
    cat.start().await.unwrap();
    cat.resize(80, 24).await.unwrap();
    stdin.write_all(b"y\r\x04").unwrap();
    assert_eq!(read_all(stdout).await, b"y\r\ny\r\n");
    assert_eq!(cat.wait().await, 0);
}

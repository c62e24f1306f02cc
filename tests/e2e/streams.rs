//! Standard input and output: exact, separate, large, slow, and without a reader.

use std::io::{Read, Write};
use std::time::Instant;

use wasmvm_tests::exec::Exec;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

const MIB: usize = 1 << 20;
/// `probe spam` and `probe swallow` work in blocks of this size.
const BLOCK_BYTES: usize = 65536;

/// The pattern of `probe spam`: block k starts with k in 8 bytes little-endian, the rest is
/// (7j + j/256) mod 256.
fn pattern(mib: usize) -> Vec<u8> {
    let mut block: Vec<u8> = (0..BLOCK_BYTES)
        .map(|j| u8::try_from((7 * j + j / 256) % 256).expect("a byte"))
        .collect();
    let mut bytes = Vec::with_capacity(mib * MIB);
    for k in 0..mib * MIB / BLOCK_BYTES {
        block[..8].copy_from_slice(&(k as u64).to_le_bytes());
        bytes.extend_from_slice(&block);
    }
    bytes
}

#[test]
fn an_empty_input_ends() {
    let outcome = Run::image("busybox").args(["cat"]).to_end();
    assert_eq!(outcome.expect_status(0).text(), "");
    let task = Run::image("busybox")
        .args(["sh", "-c", "sleep 4321"])
        .flag("--null-io")
        .detached();
    let outcome = Exec::of(&task, ["cat"]).to_end();
    assert_eq!(outcome.expect_status(0).text(), "");
}

#[test]
fn a_hundred_megabytes_of_output_arrive_exactly_and_unmixed() {
    let outcome = Run::image("probe")
        .args(["/probe", "spam", "100"])
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.stdout.len(), 100 * MIB);
    assert!(
        outcome.stdout == pattern(100),
        "the output differs from the pattern"
    );
    assert_eq!(outcome.error(), "spam: begin\nspam: half\nspam: end\n");
}

#[test]
fn large_input_arrives_exactly_and_ends() {
    let outcome = Run::image("probe")
        .args(["/probe", "swallow"])
        .stdin(pattern(20))
        .to_end()
        .expect_status(0);
    assert_eq!(
        outcome.text(),
        format!("{} bytes of the pattern\n", 20 * MIB)
    );
}

#[test]
fn input_comes_back_through_the_program_byte_for_byte() {
    let every_byte: Vec<u8> = (0..=255).cycle().take(300_001).collect();
    let outcome = Run::image("probe")
        .args(["/probe", "cat"])
        .stdin(every_byte.clone())
        .to_end()
        .expect_status(0);
    assert!(outcome.stdout == every_byte, "the copy differs");
}

#[test]
fn a_dialogue_goes_line_by_line() {
    let (_task, mut child) = Run::image("probe").args(["/probe", "echo"]).in_background();
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let mut expect = |text: &str| {
        let mut seen = vec![0; text.len()];
        output.read_exact(&mut seen).expect("the program answers");
        assert_eq!(String::from_utf8_lossy(&seen), text);
    };
    expect("ready\n");
    for line in ["one", "two"] {
        // One write: the program answers what a read gives it, and a line in two pieces may be two reads.
        let line_with_end = format!("{line}\n");
        input
            .write_all(line_with_end.as_bytes())
            .expect("the program reads");
        expect(&format!("got {line}\n"));
    }
    drop(input);
    assert!(child.wait().expect("ctr ends").success());
}

#[test]
fn a_kill_is_prompt_when_nobody_reads_the_output() {
    let before = leftovers::found();
    // 50 MiB into a pipe that is never read: the program is stuck in a write.
    let (task, mut child) = Run::image("probe")
        .args(["/probe", "spam", "50"])
        .in_background();
    let mut first = [0];
    child
        .stderr
        .as_mut()
        .expect("piped")
        .read_exact(&mut first)
        .expect("it has begun");
    task.until("RUNNING");
    task.kill("SIGKILL");
    let start = Instant::now();
    drop(child.stdout.take());
    child.wait().expect("ctr ends");
    assert!(
        start.elapsed().as_secs() < 60,
        "the task hung: {:?}",
        start.elapsed()
    );
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_task_whose_client_died_of_a_closed_pipe_can_be_removed() {
    let before = leftovers::found();
    let run = Run::image("probe").args(["/probe", "spam", "20"]);
    let task = run.task();
    let _ = run.through("sh", &["-c", "\"$@\" | head -c 10 >/dev/null", "sh"]);
    // ctr died of the closed pipe, as it does with any runtime; the program is stuck in a write.
    task.remove();
    assert_eq!(task.state(), None);
    leftovers::expect_none_but_fifos_since(&before);
}

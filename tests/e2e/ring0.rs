//! Guests that try, in a random order, all that ring 0 can (`wasmvm_tests::ring0`): each ends, for a reason
//! that is told, and does nothing to the host.
//!
//! `WASMVM_RING0_SECONDS` says for how long new seeds are tried, in place of a few that are always the same;
//! `WASMVM_RING0_SEED` repeats one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wasmvm_tests::ctr::Outcome;
use wasmvm_tests::install::OtherAgent;
use wasmvm_tests::leftovers;
use wasmvm_tests::ring0::{ALL_DONE, kernel, last};
use wasmvm_tests::task::Run;

/// What is always tried: ends of most kinds, and three guests that set devices up.
const SEEDS: [u64; 8] = [0, 1, 2, 3, 6, 8, 9, 10];
/// What a guest is given to boot, which none of these ever does, seconds.
const BOOT_S_MAX: u64 = 2;
/// From `ctr run` to its end, under emulation.
const END_MAX: Duration = Duration::from_secs(30);
/// What is said where nothing better is known: a VMM that has a bug, or died by itself.
const NO_REASONS: [&str; 6] = [
    "has a bug",
    "exited with status",
    "killed by signal",
    "the VMM ended",
    "without a word",
    "broke the control protocol",
];
/// `O_NONBLOCK` of open(2).
const NONBLOCK: i32 = 0o4000;
/// Words of a Linux that found itself at fault.
const COMPLAINTS: [&str; 6] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "general protection",
    "Call Trace",
    "INFO: task",
];

#[test]
fn whatever_ring_0_does_the_guest_ends_for_a_reason_that_is_told() {
    // Compiled before the compiler's guest is another one too.
    an_ordinary_task_runs();
    let before = leftovers::found();
    let complaints = complaints().len();
    let mut settings = tempfile::NamedTempFile::new().expect("a file");
    writeln!(settings, "boot_timeout_s = {BOOT_S_MAX}").expect("written");
    let settings = settings
        .path()
        .to_str()
        .expect("a path of ours is text")
        .to_owned();
    let mut done = 0;
    let mut tried = 0;
    for seed in seeds() {
        let outcome = run(seed, &settings);
        expect_reason(seed, &outcome);
        tried += 1;
        done += u32::from(outcome.error().contains(ALL_DONE));
        leftovers::expect_none_since(&before);
    }
    println!("{tried} guests, {done} of them to their last step");
    assert!(done > 0, "none of them made all its steps");
    an_ordinary_task_runs();
    let now = self::complaints();
    assert_eq!(
        now.len(),
        complaints,
        "the host's kernel says: {:?}",
        now.last()
    );
}

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("WASMVM_RING0_SEED") {
        return Box::new([seed].into_iter());
    }
    let Some(seconds) = number("WASMVM_RING0_SECONDS") else {
        return Box::new(SEEDS.into_iter());
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let (first, start) = (now.as_secs() << 20, Instant::now());
    let in_time = move |_: &u64| start.elapsed() < Duration::from_secs(seconds);
    Box::new((first..).take_while(in_time))
}

fn run(seed: u64, settings: &str) -> Outcome {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&kernel(seed)).expect("written");
    let installed = OtherAgent::with_kernel(file.path());
    Run::image("tiny")
        .option("--runtime", &installed.runtime())
        .option("--runtime-config-path", settings)
        .to_end()
}

#[track_caller]
fn expect_reason(seed: u64, outcome: &Outcome) {
    let error = outcome.error();
    let said = error.find("the microVM").map_or("", |at| &error[at..]);
    let shown: String = said.chars().take(200).collect();
    println!(
        "seed {seed} ({:?}), {:.1?}: {shown}",
        last(seed),
        outcome.took
    );
    assert!(
        outcome.status != 0 && !said.is_empty(),
        "seed {seed}: {outcome}"
    );
    assert!(outcome.took < END_MAX, "seed {seed}: {outcome}");
    for none in NO_REASONS {
        assert!(!error.contains(none), "seed {seed}: {none:?} in {outcome}");
    }
    assert!(!error.contains("ring 0 goes on"), "seed {seed}: {outcome}");
}

#[track_caller]
fn an_ordinary_task_runs() {
    let outcome = Run::image("tiny").to_end().expect_status(0);
    assert_eq!(outcome.text(), "tiny\n");
}

/// What the host's kernel has said of itself (`Documentation/ABI/testing/dev-kmsg`: a record a read).
fn complaints() -> Vec<String> {
    let options = fs::OpenOptions::new()
        .read(true)
        .custom_flags(NONBLOCK)
        .open("/dev/kmsg");
    let mut kmsg = options.expect("the host's kernel log; the tests run as root");
    let (mut record, mut found) = (vec![0; 8192], Vec::new());
    loop {
        match kmsg.read(&mut record) {
            Ok(length) if length > 0 => {
                let line = String::from_utf8_lossy(&record[..length]).into_owned();
                if COMPLAINTS.iter().any(|word| line.contains(word)) {
                    found.push(line);
                }
            }
            // A record that was overwritten meanwhile.
            Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => {}
            _ => return found,
        }
    }
}

//! Real FIFOs on one side, a socket pair for the guest on the other.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

use crate::stdio::{StdioNames, StdioOwner};

struct Fixture {
    dir: tempfile::TempDir,
    switch: StdioSwitch,
    /// Whether the guest runs.
    runs: watch::Sender<bool>,
    pumps: Pumps,
    guest: GuestStreams,
}

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Opened without waiting: a thread could come after the writer is gone, and would wait for ever.
pub(crate) fn open_reader(path: &Path) -> File {
    let mut options = File::options();
    let flags = rustix::fs::OFlags::NONBLOCK;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = options.open(path).unwrap();
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
    file
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let names = StdioNames {
        stdin: fifo(dir.path(), "stdin"),
        stdout: fifo(dir.path(), "stdout"),
        stderr: fifo(dir.path(), "stderr"),
    };
    let owner = StdioOwner {
        namespace: "ns",
        id: "web",
    };
    let stdio = Stdio::open(&names, &owner).await.unwrap();
    let (ours, guest): (Vec<_>, Vec<_>) = (0..3).map(|_| UnixStream::pair().unwrap()).unzip();
    let streams = |mut sockets: Vec<UnixStream>| GuestStreams {
        stderr: sockets.pop(),
        stdout: sockets.pop(),
        stdin: sockets.pop(),
    };
    let switch = StdioSwitch::default();
    let runs = watch::Sender::new(true);
    let clock = GuestClock::new(runs.subscribe());
    Fixture {
        dir,
        pumps: Pumps::start(stdio, streams(ours), &switch, &clock),
        switch,
        runs,
        guest: streams(guest),
    }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client that reads one FIFO to its end, in a thread.
    fn client(&self, name: &str) -> tokio::task::JoinHandle<Vec<u8>> {
        let mut fifo = open_reader(&self.path(name));
        tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            fifo.read_to_end(&mut bytes).unwrap();
            bytes
        })
    }
}

#[tokio::test]
async fn output_reaches_its_reader_unmixed_and_ends() {
    let mut fixture = fixture().await;
    let (out, err) = (fixture.client("stdout"), fixture.client("stderr"));
    let pattern: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.to_le_bytes()[n as usize % 4])
        .collect();
    let mut stdout = fixture.guest.stdout.take().unwrap();
    let mut stderr = fixture.guest.stderr.take().unwrap();
    stderr.write_all(b"oh").await.unwrap();
    stdout.write_all(&pattern).await.unwrap();
    drop((stdout, stderr));
    assert!(fixture.pumps.drain().await);
    assert!(out.await.unwrap() == pattern);
    assert_eq!(err.await.unwrap(), b"oh");
}

#[tokio::test]
async fn a_client_that_goes_and_comes_back_breaks_nothing() {
    let mut fixture = fixture().await;
    let path = fixture.path("stdout");
    let mut stdout = fixture.guest.stdout.take().unwrap();
    drop(File::open(&path).unwrap());
    stdout.write_all(b"still here").await.unwrap();
    drop((stdout, fixture.guest.stderr.take()));
    assert!(fixture.pumps.drain().await);
    // Even after the program's end, until the task is deleted.
    let mut bytes = Vec::new();
    open_reader(&path).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"still here");
}

/// A guest that has written more than the FIFO takes, and closes its stream.
async fn flood(fixture: &mut Fixture, bytes: usize) -> tokio::task::JoinHandle<()> {
    drop(fixture.guest.stderr.take());
    let mut stdout = fixture.guest.stdout.take().unwrap();
    let flood = tokio::spawn(async move {
        // Ends early when the shim closes the stream.
        let _ = stdout.write_all(&vec![7; bytes]).await;
    });
    tokio::task::yield_now().await;
    flood
}

#[tokio::test]
async fn delete_does_not_wait_for_a_reader_that_is_gone() {
    let mut fixture = fixture().await;
    let flood = flood(&mut fixture, 1 << 20).await;
    fixture.switch.begin_drain();
    let start = std::time::Instant::now();
    assert!(fixture.pumps.drain().await);
    assert!(start.elapsed() < Duration::from_secs(5));
    flood.await.unwrap();
}

#[tokio::test]
async fn a_reader_may_come_any_time_before_delete() {
    let mut fixture = fixture().await;
    let flood = flood(&mut fixture, 1 << 20).await;
    let early = tokio::time::timeout(Duration::from_millis(200), fixture.pumps.drain()).await;
    assert!(early.is_err(), "it waits");
    let client = fixture.client("stdout");
    assert!(fixture.pumps.drain().await);
    assert_eq!(client.await.unwrap().len(), 1 << 20, "nothing is lost");
    flood.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stuck_reader_holds_up_delete_for_a_bounded_time() {
    let mut fixture = fixture().await;
    let _stuck = open_reader(&fixture.path("stdout"));
    let flood = flood(&mut fixture, 1 << 20).await;
    let hour = Duration::from_secs(3600);
    assert!(
        tokio::time::timeout(hour, fixture.pumps.drain())
            .await
            .is_err()
    );
    let start = Instant::now();
    fixture.switch.begin_drain();
    assert!(!fixture.pumps.drain().await);
    assert_eq!(start.elapsed(), DRAIN_MAX);
    flood.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_keeps_a_stream_open_is_given_up() {
    let mut fixture = fixture().await;
    let start = Instant::now();
    assert!(fixture.pumps.drain().await);
    assert_eq!(start.elapsed(), REST_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_given_its_time() {
    let mut fixture = fixture().await;
    drop(fixture.guest.stderr.take());
    fixture.runs.send_replace(false);
    let hour = Duration::from_secs(3600);
    assert!(
        tokio::time::timeout(hour, fixture.pumps.drain())
            .await
            .is_err()
    );
    let mut stdout = fixture.guest.stdout.take().unwrap();
    stdout.write_all(b"late").await.unwrap();
    drop(stdout);
    assert!(fixture.pumps.drain().await);
    let mut kept = String::new();
    let mut reader = open_reader(&fixture.path("stdout"));
    reader.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "late");
}

#[tokio::test]
async fn a_guest_that_sends_without_end_is_given_up() {
    let mut fixture = fixture().await;
    let client = fixture.client("stdout");
    let flood = flood(&mut fixture, 100 << 20).await;
    assert!(fixture.pumps.drain().await);
    assert!(client.await.unwrap().len() <= REST_BYTES_MAX + BUFFER_BYTES);
    flood.await.unwrap();
}

#[tokio::test]
async fn input_ends_after_close_io_and_not_before_it_is_drained() {
    let mut fixture = fixture().await;
    let mut client = File::options()
        .write(true)
        .open(fixture.path("stdin"))
        .unwrap();
    client.write_all(b"first ").unwrap();
    fixture.switch.open_stdin();
    let mut stdin = fixture.guest.stdin.take().unwrap();
    let mut first = [0; 6];
    stdin.read_exact(&mut first).await.unwrap();
    drop(client);
    // A client that goes away is not the end of the input, and a second one may come.
    let mut client = File::options()
        .write(true)
        .open(fixture.path("stdin"))
        .unwrap();
    client.write_all(b"second").unwrap();
    // It still holds its end when it asks for the close, as ctr does.
    fixture.switch.close_stdin();
    let mut rest = Vec::new();
    stdin.read_to_end(&mut rest).await.unwrap();
    assert_eq!((&first[..], &rest[..]), (&b"first "[..], &b"second"[..]));
}

#[tokio::test]
async fn close_io_comes_through_when_the_program_does_not_read() {
    let mut fixture = fixture().await;
    let client = File::options()
        .write(true)
        .open(fixture.path("stdin"))
        .unwrap();
    fixture.switch.close_stdin();
    fixture.switch.close_stdin();
    let mut rest = Vec::new();
    let mut stdin = fixture.guest.stdin.take().unwrap();
    stdin.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    drop(client);
}

#[tokio::test]
async fn a_client_that_comes_after_the_start_is_heard() {
    let mut fixture = fixture().await;
    fixture.switch.open_stdin();
    let mut stdin = fixture.guest.stdin.take().unwrap();
    // The copy has this thread, and sees that nobody is there.
    tokio::task::yield_now().await;
    // Refused if the shim has closed its end.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut client = File::options()
        .write(true)
        .custom_flags(nonblocking)
        .open(fixture.path("stdin"))
        .unwrap();
    client.write_all(b"late").unwrap();
    fixture.switch.close_stdin();
    let mut all = String::new();
    stdin.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "late");
}

/// `ctr` with an empty standard input opens the FIFO and closes it again before the shim is asked for
/// anything. Nothing of that can be seen afterwards.
#[tokio::test]
async fn input_of_a_client_that_left_before_create_ends() {
    let mut fixture = fixture().await;
    fixture.switch.open_stdin();
    let mut all = String::new();
    let mut stdin = fixture.guest.stdin.take().unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), stdin.read_to_string(&mut all));
    end.await.expect("the input ends").unwrap();
    assert_eq!(all, "");
}

#[tokio::test]
async fn input_that_ended_before_the_start_ends() {
    for text in ["", "all of it"] {
        let mut fixture = fixture().await;
        std::fs::write(fixture.path("stdin"), text).unwrap();
        fixture.switch.open_stdin();
        let mut all = String::new();
        let mut stdin = fixture.guest.stdin.take().unwrap();
        stdin.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, text);
    }
}

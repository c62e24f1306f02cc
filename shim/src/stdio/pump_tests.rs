//! Real FIFOs on one side, a socket pair for the guest on the other.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

use crate::stdio::{StdioNames, StdioOwner};

const DRAIN_MAX: Duration = Duration::from_secs(10);

struct Fixture {
    dir: tempfile::TempDir,
    pumps: Pumps,
    guest: GuestStreams,
}

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Opened without waiting: a thread could come after the writer is gone, and would wait for ever.
pub fn open_reader(path: &Path) -> File {
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
    Fixture {
        dir,
        pumps: Pumps::start(stdio, streams(ours)),
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
    assert!(fixture.pumps.drain(DRAIN_MAX).await);
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
    assert!(fixture.pumps.drain(DRAIN_MAX).await);
    // Even after the program's end, until the task is deleted.
    let mut bytes = Vec::new();
    open_reader(&path).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"still here");
}

#[tokio::test]
async fn a_reader_that_is_gone_is_not_waited_for() {
    let mut fixture = fixture().await;
    let stdout = fixture.guest.stdout.take().unwrap();
    let flood = tokio::spawn(async move {
        let mut stdout = stdout;
        // Ends when the shim closes the stream.
        while stdout.write_all(&[0; 4096]).await.is_ok() {}
    });
    drop(fixture.guest.stderr.take());
    let start = std::time::Instant::now();
    assert!(fixture.pumps.drain(DRAIN_MAX).await);
    assert!(start.elapsed() < Duration::from_secs(5));
    flood.await.unwrap();
}

#[tokio::test]
async fn a_stuck_reader_holds_up_the_end_for_a_bounded_time() {
    let mut fixture = fixture().await;
    let _stuck = File::open(fixture.path("stdout")).unwrap();
    let stdout = fixture.guest.stdout.take().unwrap();
    let flood = tokio::spawn(async move {
        let mut stdout = stdout;
        while stdout.write_all(&[0; 4096]).await.is_ok() {}
    });
    drop(fixture.guest.stderr.take());
    assert!(!fixture.pumps.drain(Duration::from_millis(100)).await);
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
    fixture.pumps.stdin().open();
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
    fixture.pumps.stdin().close();
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
    fixture.pumps.stdin().close();
    fixture.pumps.stdin().close();
    let mut rest = Vec::new();
    let mut stdin = fixture.guest.stdin.take().unwrap();
    stdin.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    drop(client);
}

#[tokio::test]
async fn input_that_ended_before_the_start_ends() {
    for text in ["", "all of it"] {
        let mut fixture = fixture().await;
        std::fs::write(fixture.path("stdin"), text).unwrap();
        fixture.pumps.stdin().open();
        let mut all = String::new();
        let mut stdin = fixture.guest.stdin.take().unwrap();
        stdin.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, text);
    }
}

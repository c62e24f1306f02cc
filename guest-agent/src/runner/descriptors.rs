//! Descriptors 0, 1 and 2: writing all of something, and waiting for input.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watch::watch_standard;

/// All of `bytes`, to standard error, whatever happens.
pub(super) fn write_stderr(bytes: &[u8]) {
    let _ = write_all(rustix::stdio::stderr(), bytes);
}

/// Blocks until everything is written.
///
/// # Errors
/// `send(2)`'s; `EPIPE` when the reader is gone.
pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_once(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(fd)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// A stream is a socket and raises no `SIGPIPE`: that signal keeps its default action, for who sends it
/// from outside. Anything else is the null device or a terminal.
fn write_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::net::send(fd, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::NOTSOCK) => rustix::io::write(fd, bytes),
        sent => sent,
    }
}

/// Somebody made the descriptor non-blocking; it is shared, so it stays so.
fn wait_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
    match rustix::event::poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a read would not block: bytes, end of file or an error are there.
pub(super) fn readable() -> bool {
    let stdin = rustix::stdio::stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}

/// Returns when standard input is readable.
pub(super) async fn until_readable() {
    // Registered once for the process, as epoll takes a descriptor only once; any number may wait.
    static WATCHED: OnceLock<Option<AsyncFd<BorrowedFd<'static>>>> = OnceLock::new();
    let watched =
        WATCHED.get_or_init(|| watch_standard(rustix::stdio::stdin(), Interest::READABLE).ok());
    // What epoll does not take (a regular file, the null device) is always readable.
    let Some(watched) = watched else {
        return;
    };
    // Asked anew before each wait, so what came in before is not missed.
    while !readable() {
        match watched.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

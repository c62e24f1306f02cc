//! Descriptors 0, 1 and 2: writing all of something, and waiting for input.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) const STDIN_FD: RawFd = 0;
const STDERR_FD: RawFd = 2;

/// One of the three.
pub(super) fn descriptor(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0, 1 and 2 are open from exec to exit; nothing in this process closes them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// All of `bytes`, to standard error, whatever happens.
pub(super) fn write_stderr(bytes: &[u8]) {
    let _ = write_all(STDERR_FD, bytes);
}

/// Blocks until everything is written.
///
/// # Errors
/// `send(2)`'s; `EPIPE` when the reader is gone.
pub(super) fn write_all(fd: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_once(descriptor(fd), bytes) {
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
fn wait_writable(fd: RawFd) -> io::Result<()> {
    let descriptor = descriptor(fd);
    let mut polled = [PollFd::new(&descriptor, PollFlags::OUT)];
    match rustix::event::poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a read would not block: bytes, end of file or an error are there.
pub(super) fn readable() -> bool {
    let descriptor = descriptor(STDIN_FD);
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}

/// Descriptor 0 for the runtime's event loop.
#[derive(Debug)]
struct Watched;

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        STDIN_FD
    }
}

/// Returns when standard input is readable.
pub(super) async fn until_readable() {
    // Registered once for the process, as epoll takes a descriptor only once; any number may wait.
    static WATCHED: OnceLock<Option<AsyncFd<Watched>>> = OnceLock::new();
    let watched = WATCHED.get_or_init(|| {
        // SAFETY: descriptor 0 stays open and the same as long as the process lives.
        unsafe { AsyncFd::register_with_interest(Watched, Interest::READABLE) }.ok()
    });
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

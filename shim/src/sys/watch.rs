//! Waiting for a descriptor: on the runtime's poll loop, or on a thread that may block.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor for readability. Called inside the runtime.
///
/// # Errors
/// `epoll_ctl(2)`'s.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is valid, stays open and names the same description as long as the AsyncFd
    // that owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// Blocks until one of the descriptors has an event that is asked for, at most until `deadline`, whatever
/// signals come meanwhile. Returns whether one has.
///
/// # Errors
/// `poll(2)`'s but `EINTR`.
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(fds, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Blocks until `fd` is readable, at most `limit`, whatever signals come meanwhile.
///
/// # Errors
/// `poll(2)`'s but `EINTR`.
pub(crate) fn readable_within(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    poll_until(
        &mut [PollFd::new(&fd, PollFlags::IN)],
        Instant::now() + limit,
    )
}

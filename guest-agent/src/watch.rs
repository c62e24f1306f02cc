//! Descriptors in the runtime's event loop.
#![allow(
    unsafe_code,
    reason = "that a descriptor stays the same is the caller's word to tokio"
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of which readability is waited for; it should be non-blocking if it is read.
///
/// # Errors
/// `epoll_ctl(2)`'s.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch_for(fd, Interest::READABLE)
}

/// A non-blocking descriptor that is read or written when it is ready for that.
///
/// # Errors
/// `epoll_ctl(2)`'s.
pub(crate) fn watch_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and the same until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Standard input, output or error: what stays open as long as the process lives.
///
/// # Errors
/// `epoll_ctl(2)`'s: `EPERM` for a regular file or the null device, which are always ready.
pub(crate) fn watch_standard(
    fd: BorrowedFd<'static>,
    interest: Interest,
) -> io::Result<AsyncFd<BorrowedFd<'static>>> {
    // SAFETY: a descriptor that is borrowed for ever stays open and the same.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

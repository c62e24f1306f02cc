//! Descriptors as they pass between the types of std and those of the libraries.
#![allow(unsafe_code, reason = "a raw descriptor has no owner")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::control::CONTROL_FD;

/// Takes over the control socket that the shim left at [`CONTROL_FD`].
///
/// # Errors
/// `getsockname(2)`'s, when the descriptor is no socket. The descriptor is left as it was then.
///
/// # Safety
/// No object of the process owns descriptor [`CONTROL_FD`].
pub unsafe fn inherited_control() -> io::Result<OwnedFd> {
    // SAFETY: the borrow ends with the call; a descriptor that is not open makes the call fail.
    let looked_at = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    rustix::net::getsockname(looked_at)?;
    // SAFETY: the descriptor is open, and the caller says that nothing owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}

/// The descriptor as that of KVM, whichever file it is of.
pub(crate) fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: an open descriptor that we own passes to the new owner.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// An event's descriptor, for `poll(2)` and `epoll_ctl(2)`.
pub(crate) fn of_event(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open while `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Resets the count of an event, which may be zero.
pub(crate) fn clear_event(event: &EventFd) -> io::Result<()> {
    match event.read() {
        Err(err) if err.kind() != io::ErrorKind::WouldBlock => Err(err),
        _ => Ok(()),
    }
}

//! Descriptors as they pass between the types of std and those of the libraries.
#![allow(unsafe_code, reason = "a raw descriptor has no owner")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::control::CONTROL_FD;

/// Takes over the control socket that the shim left at [`CONTROL_FD`], once.
///
/// # Errors
/// `getsockname(2)`'s, when the descriptor is no socket; `AlreadyExists` the second time.
pub fn inherited_control() -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: nothing else in this process was given the descriptor.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    rustix::net::getsockname(control.as_fd())?;
    Ok(control)
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

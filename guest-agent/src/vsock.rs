//! The agent's vsock ports: listening on them, and the announcement that all of them listen.
#![allow(unsafe_code, reason = "setsockopt(2) of an option that no crate knows")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use wasmvm_protocol::ports::READY_PORT;

use crate::log::{self, Level};
use crate::tree::{GuestError, doing};

/// Bytes a stream may hold in the guest; the kernel's default is 256 KiB (`af_vsock.c`).
pub(crate) const STREAM_BUFFER_BYTES: u64 = 64 << 10;
/// Socket option of `AF_VSOCK` (kernel `linux/vm_sockets.h`).
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
/// How long the ready announcement may take; the VMM resets it at once.
const READY_WAIT_MAX: Duration = Duration::from_secs(5);

/// A listening socket of the agent's.
///
/// # Errors
/// [`GuestError`], naming the port.
pub(crate) fn listen(port: u32) -> Result<OwnedFd, GuestError> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map(OwnedFd::from)
        .map_err(doing(format!("listen on vsock port {port}")))
}

/// Bounds what a stream may hold in the guest: accepted connections inherit the listener's buffer size.
///
/// # Errors
/// `setsockopt(2)`'s.
pub(crate) fn limit_buffer(socket: &OwnedFd) -> Result<(), GuestError> {
    // SAFETY: the option reads a u64 (`vsock_connectible_setsockopt`), which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_BUFFER_SIZE,
            std::ptr::from_ref(&STREAM_BUFFER_BYTES).cast(),
            8,
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(doing("bound the streams' buffers")(error));
    }
    Ok(())
}

/// Tells the VMM that every port listens; it answers with a reset, which means "heard".
pub(crate) async fn announce() {
    let dial = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, READY_PORT));
    if tokio::time::timeout(READY_WAIT_MAX, dial).await.is_err() {
        log::line(Level::Warning, "nobody heard that the agent is ready");
    }
}

//! Where the tests and the fuzz target begin.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::os::unix::net::UnixStream;

use wasmvm_protocol::ports::GUEST_CID;

use super::*;
use crate::virtio::vsock::handle::Target;

impl Connection {
    /// A connection that waits for its start, and the host's far end, which never blocks.
    pub(super) fn waiting() -> (Self, UnixStream) {
        let (far, near) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let order = Order {
            id: 1,
            port: 1025,
            target: Target::Stream(near.into()),
        };
        (Self::new(order, 1 << 30, GUEST_CID), far)
    }
}

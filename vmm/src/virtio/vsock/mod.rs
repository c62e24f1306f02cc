//! The socket device (virtio 1.2 §5.10), entirely in user space: hosts often have no vhost-vsock.
//!
//! All connections are byte streams and made by the host; a guest's request for a connection is reset. One such
//! request has a meaning, once: a request for [`wasmvm_protocol::ports::READY_PORT`] says that the guest listens.
//!
//! ```text
//!   VsockHandle ──orders────► worker ◄──kicks, interrupts──► virtqueues
//!                               │ one thread, one epoll
//!   VsockEventFn ◄──events─── muxer ── table ── connection ◄──► host socket or sink file
//! ```
//!
//! One file, one job: [`device`] is for the transport, [`handle`] for the rest of the VMM;
//! `worker` moves packets between the queues (`ring`) and the `muxer`, which finds the `connection` of a
//! packet in the `table`; `host` is a connection's end on the host, `direction` the bytes that flow
//! through it by the rules of `credit`, `backlog` the bytes that have to wait; `packet` is the wire format,
//! `chain` the descriptors that hold a packet.

mod backlog;
mod chain;
mod connection;
mod credit;
pub mod device;
mod direction;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    //! The targets of the modules below.
    pub use super::chain::fuzz::chain;
    pub use super::connection::fuzz::vsock_connection;
    pub use super::worker::fuzz::vsock_worker;
}
pub mod handle;
mod host;
#[cfg(test)]
mod mock;
mod muxer;
mod packet;
mod ring;
mod table;
mod worker;

pub use device::VsockDevice;
pub use handle::{
    CutReason, RefusedReason, StoppedReason, VsockEvent, VsockEventFn, VsockHandle,
    VsockHandleError,
};
pub use ring::RingError;

/// The host's context id (virtio 1.2 §5.10.4).
pub const HOST_CID: u32 = 2;
/// Most connections of one guest at a time, those that wait for the guest to be ready included.
pub const CONNECTIONS_MAX: usize = 64;
/// Most bytes of a connection held in the VMM, each way. Also the credit that the guest gets for sending
/// ahead.
pub const BUFFER_BYTES_MAX: u32 = 64 * 1024;
/// How long a guest that is ready may take to answer a connection request, milliseconds.
pub const CONNECT_MS_MAX: u64 = 5_000;
/// How long a guest may take to confirm that a connection has ended, milliseconds; then the connection is reset.
pub const CLOSE_MS_MAX: u64 = 2_000;

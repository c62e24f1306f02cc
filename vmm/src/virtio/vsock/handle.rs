//! The device as the rest of the VMM sees it: orders go in by [`VsockHandle`], events come out as [`VsockEvent`].

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ring::RingError;
use super::{BUFFER_BYTES_MAX, CONNECT_MS_MAX, CONNECTIONS_MAX};
use crate::seccomp::SeccompError;

/// Most orders that wait for the worker.
pub const ORDERS_MAX: usize = 2 * CONNECTIONS_MAX;

/// Gives orders to the device's worker, from any thread and at any time: an order that comes before the
/// guest is ready waits for the guest.
#[derive(Clone, Debug)]
pub struct VsockHandle {
    orders: SyncSender<Order>,
    wake: Arc<EventFd>,
}

/// The worker's end of a [`VsockHandle`].
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) receiver: Receiver<Order>,
    /// Readable when an order was given.
    pub(super) wake: Arc<EventFd>,
}

/// A connection that the worker is to make.
#[derive(Debug)]
pub(super) struct Order {
    /// Number that the shim chose, named in every event about the order.
    pub(super) id: u32,
    /// Port that the guest listens on.
    pub(super) port: u32,
    /// The host's end of the connection.
    pub(super) target: Target,
}

/// The host's end of a connection.
#[derive(Debug)]
pub(super) enum Target {
    /// A stream socket: bytes go both ways.
    Stream(OwnedFd),
    /// A file that takes what the guest sends.
    Sink { file: File, bytes_max: u64 },
}

/// Called with each event of the worker; on the worker's thread, so the function must not block
/// for long.
pub type VsockEventFn = Box<dyn FnMut(VsockEvent) + Send>;

/// An event of the worker.
#[derive(Debug)]
pub enum VsockEvent {
    /// The guest listens on its ports. Comes once.
    AgentReady,
    /// The guest accepted the connection.
    Connected {
        /// Id of the order.
        id: u32,
    },
    /// No connection was made.
    Refused {
        /// Id of the order.
        id: u32,
        /// Why there is no connection.
        reason: RefusedReason,
    },
    /// The guest ended a sink's stream in order; all of the stream is in the file.
    SinkDone {
        /// Id of the order.
        id: u32,
        /// Bytes written to the file.
        bytes: u64,
    },
    /// A sink's stream was cut.
    SinkFailed {
        /// Id of the order.
        id: u32,
        /// Why the stream was cut.
        reason: CutReason,
    },
    /// The worker ended; no connection works any more, so the VM is to be ended.
    Stopped(StoppedReason),
}

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub enum StoppedReason {
    /// The driver broke the rules of a ring; no content of the ring can be trusted any more.
    #[error("the guest's vsock queue {queue} is not a valid ring")]
    Ring {
        /// Index of the queue.
        queue: usize,
        /// Error of the ring.
        #[source]
        source: RingError,
    },
    /// The worker's thread got no filter of system calls, without which it may not work.
    #[error("the vsock worker cannot be confined")]
    Confine(#[from] SeccompError),
    /// A system call failed.
    #[error("the vsock worker cannot go on")]
    Os(#[from] io::Error),
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum RefusedReason {
    /// The guest reset the request: no process listens, or its backlog is full.
    #[error("the guest refused the connection to port {0}")]
    Reset(u32),
    /// The guest did not answer the request in time.
    #[error("the guest did not answer the connection to port {0} within {CONNECT_MS_MAX} ms")]
    TimedOut(u32),
    /// The guest has [`CONNECTIONS_MAX`] connections already.
    #[error("{CONNECTIONS_MAX} vsock connections exist already, and no more are allowed")]
    TableFull,
    /// The descriptor is not one that epoll can wait for.
    #[error("the descriptor of the connection to port {port} is not a stream socket")]
    Descriptor {
        /// Port that the guest listens on.
        port: u32,
        /// Error of `epoll_ctl(2)` on the descriptor.
        #[source]
        source: io::Error,
    },
}

/// Why a sink's stream was cut.
#[derive(Debug, thiserror::Error)]
pub enum CutReason {
    /// The guest reset the connection without ending the stream.
    #[error("the guest reset the connection after {0} bytes")]
    Reset(u64),
    /// The guest sent more than the order allows.
    #[error("the guest sent more than the {0} bytes allowed")]
    Overflow(u64),
    /// The guest sent more bytes than it had credit for.
    #[error("the guest sent more than the {BUFFER_BYTES_MAX} bytes it had credit for")]
    Credit,
    /// The guest broke the rules of virtio 1.2 §5.10.6.
    #[error("the guest sent a packet that has no place in its connection")]
    Protocol,
    /// The file could not be written.
    #[error("cannot write the guest's bytes to the file")]
    Write(#[source] io::Error),
}

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub enum VsockHandleError {
    /// [`ORDERS_MAX`] orders wait for the worker.
    #[error("{ORDERS_MAX} vsock orders are waiting already")]
    TooMany,
    /// The worker has ended, or cannot be woken.
    #[error("the vsock worker is gone")]
    Gone,
}

impl VsockHandle {
    /// A handle and the worker's end of it.
    pub(super) fn new() -> io::Result<(Self, Orders)> {
        let (orders, receiver) = sync_channel(ORDERS_MAX);
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let handle = Self {
            orders,
            wake: Arc::clone(&wake),
        };
        Ok((handle, Orders { receiver, wake }))
    }

    /// Connects `stream`, a stream socket, to a port of the guest. Answered by
    /// [`VsockEvent::Connected`] or [`VsockEvent::Refused`]; bytes then go both ways, with half-close.
    ///
    /// # Errors
    /// [`VsockHandleError`]; the socket is closed then.
    pub fn connect(&self, id: u32, port: u32, stream: OwnedFd) -> Result<(), VsockHandleError> {
        self.give(Order {
            id,
            port,
            target: Target::Stream(stream),
        })
    }

    /// Connects to a port of the guest and writes the guest's bytes to `file`, from its current offset,
    /// at most `bytes_max` bytes. Answered as [`VsockHandle::connect`], then by
    /// [`VsockEvent::SinkDone`] or [`VsockEvent::SinkFailed`].
    ///
    /// # Errors
    /// [`VsockHandleError`]; the file is closed then.
    pub fn sink(
        &self,
        id: u32,
        port: u32,
        file: File,
        bytes_max: u64,
    ) -> Result<(), VsockHandleError> {
        self.give(Order {
            id,
            port,
            target: Target::Sink { file, bytes_max },
        })
    }

    fn give(&self, order: Order) -> Result<(), VsockHandleError> {
        self.orders.try_send(order).map_err(|err| match err {
            TrySendError::Full(_) => VsockHandleError::TooMany,
            TrySendError::Disconnected(_) => VsockHandleError::Gone,
        })?;
        self.wake.write(1).map_err(|_| VsockHandleError::Gone)
    }
}

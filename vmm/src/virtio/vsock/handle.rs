//! What the rest of the VMM sees: orders go in through [`VsockHandle`], news come out as [`VsockEvent`].

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

/// Gives orders to the device's worker, from any thread and at any time: what is asked for before the
/// guest is ready waits for it.
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

/// One thing to do.
#[derive(Debug)]
pub(super) struct Order {
    /// Chosen by the one who orders, named in every event about it.
    pub(super) id: u32,
    /// The guest's port.
    pub(super) port: u32,
    /// What the connection is tied to on the host.
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

/// Tells the rest of the VMM what became of its orders; called on the worker's thread, must not block
/// for long.
pub type VsockEventFn = Box<dyn FnMut(VsockEvent) + Send>;

/// News from the worker.
#[derive(Debug)]
pub enum VsockEvent {
    /// The guest listens on its ports. Once.
    AgentReady,
    /// The guest accepted.
    Connected {
        /// From the order.
        id: u32,
    },
    /// No connection came about.
    Refused {
        /// From the order.
        id: u32,
        /// Why.
        reason: RefusedReason,
    },
    /// The guest ended a sink's stream in order; all of it is in the file.
    SinkDone {
        /// From the order.
        id: u32,
        /// Written to the file.
        bytes: u64,
    },
    /// A sink's stream was cut.
    SinkFailed {
        /// From the order.
        id: u32,
        /// Why.
        reason: CutReason,
    },
    /// The worker ended; no connection works any more, so the VM is to be ended.
    Stopped(StoppedReason),
}

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub enum StoppedReason {
    /// The driver broke the rules of a ring; nothing in it can be trusted any more.
    #[error("the guest's vsock queue {queue} is not a valid ring")]
    Ring {
        /// Index of the queue.
        queue: usize,
        /// What is wrong.
        #[source]
        source: RingError,
    },
    /// It may not work without its filter.
    #[error("the vsock worker cannot be confined")]
    Confine(#[from] SeccompError),
    /// A system call failed.
    #[error("the vsock worker cannot go on")]
    Os(#[from] io::Error),
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum RefusedReason {
    /// The guest reset the request: nobody listens, or its backlog is full.
    #[error("the guest refused the connection to port {0}")]
    Reset(u32),
    /// The guest did not answer.
    #[error("the guest did not answer the connection to port {0} within {CONNECT_MS_MAX} ms")]
    TimedOut(u32),
    /// Too many at a time.
    #[error("{CONNECTIONS_MAX} vsock connections exist already, and no more are allowed")]
    TableFull,
    /// The descriptor cannot be waited for.
    #[error("the descriptor of the connection to port {port} is not a stream socket")]
    Descriptor {
        /// The guest's port.
        port: u32,
        /// What the operating system says.
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
    /// The guest sent more than it was told it may send ahead.
    #[error("the guest sent more than the {BUFFER_BYTES_MAX} bytes it had credit for")]
    Credit,
    /// The guest broke the rules of §5.10.6.
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
    /// The worker is gone, or cannot be woken.
    #[error("the vsock worker is gone")]
    Gone,
}

impl VsockHandle {
    /// Both ends.
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

    /// Connects to a port of the guest and writes what it sends to `file`, from its current offset,
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

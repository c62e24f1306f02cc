//! The state of a connection: plain data, apart from the descriptor that the bytes go to and the clock that the
//! deadline comes from. What is sent next follows from it alone.

use wasmvm_protocol::inspect::{Inspect, Node};

use crate::virtio::vsock::HOST_CID;
use crate::virtio::vsock::direction::{ToGuest, ToHost};
use crate::virtio::vsock::packet::{Header, Op, SHUTDOWN_RECEIVE, TYPE_STREAM};

/// Phase of a connection. See the diagram in the documentation of [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Connecting,
    Open,
    Closing,
    Draining,
    Done,
}

/// Packets without payload that are still to be sent: at most one of each kind.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) request: bool,
    pub(super) reset: bool,
    pub(super) credit_update: bool,
    pub(super) credit_request: bool,
    /// Flags of the `SHUTDOWN` packet; zero for none.
    pub(super) shutdown: u32,
}

impl Pending {
    /// A reset, or nothing, and no other packet.
    pub(super) fn only_reset(reset: bool) -> Self {
        Self {
            reset,
            ..Self::default()
        }
    }

    fn any(&self) -> bool {
        let credit = self.credit_update || self.credit_request;
        self.request || self.reset || credit || self.shutdown != 0
    }
}

/// A connection's phase, its two directions and its pending packets.
#[derive(Debug)]
pub(super) struct ConnectionState {
    /// Id of the order that asked for the connection.
    pub(super) id: u32,
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    pub(super) guest_cid: u32,
    pub(super) phase: Phase,
    pub(super) to_guest: ToGuest,
    pub(super) to_host: ToHost,
    pub(super) pending: Pending,
}

impl Inspect for ConnectionState {
    fn inspect(&self) -> Node {
        let phase = match self.phase {
            Phase::Waiting => "waiting",
            Phase::Connecting => "connecting",
            Phase::Open => "open",
            Phase::Closing => "closing",
            Phase::Draining => "draining",
            Phase::Done => "done",
        };
        Node::new()
            .with("guest_port", self.guest_port)
            .with("phase", phase)
            .with("to_guest", self.to_guest.inspect())
            .with("to_host", self.to_host.inspect())
    }
}

impl ConnectionState {
    /// The state of a connection that waits for the guest to listen.
    pub(super) fn waiting(id: u32, host_port: u32, guest_port: u32, guest_cid: u32) -> Self {
        Self {
            id,
            host_port,
            guest_port,
            guest_cid,
            phase: Phase::Waiting,
            to_guest: ToGuest::default(),
            to_host: ToHost::default(),
            pending: Pending::default(),
        }
    }

    /// Whether the connection has ended and has no reset to send.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Done && !self.pending.reset
    }

    /// Whether [`ConnectionState::next_operation`] has one.
    pub(super) fn has_packet(&self) -> bool {
        self.pending.any() || self.has_data()
    }

    fn has_data(&self) -> bool {
        self.phase == Phase::Open && self.to_guest.has_data()
    }

    /// The operation of the next packet for the guest, the packet's flags, and how many bytes of `payload` are now its.
    pub(super) fn next_operation(&mut self, payload: &mut [u8]) -> Option<(Op, u32, u32)> {
        let data = self.has_data();
        let pending = &mut self.pending;
        let operation = if pending.reset {
            *pending = Pending::default();
            (Op::Reset, 0, 0)
        } else if std::mem::take(&mut pending.request) {
            (Op::Request, 0, 0)
        } else if pending.shutdown != 0 {
            (Op::Shutdown, std::mem::take(&mut pending.shutdown), 0)
        } else if data {
            (Op::Data, 0, self.to_guest.take(payload))
        } else if std::mem::take(&mut pending.credit_request) {
            (Op::CreditRequest, 0, 0)
        } else if pending.credit_update {
            (Op::CreditUpdate, 0, 0)
        } else {
            return None;
        };
        Some(operation)
    }

    /// The header of a packet. Every header has the guest's credit, so no separate update is needed after it.
    pub(super) fn header(&mut self, op: Op, flags: u32, len: u32) -> Header {
        self.pending.credit_update = false;
        let (buf_alloc, fwd_cnt) = self.to_host.tell_credit();
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: self.host_port,
            dst_port: self.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Opens the connection, which the guest has accepted.
    pub(super) fn open(&mut self) {
        self.phase = Phase::Open;
        if self.to_host.is_closed() {
            self.pending.shutdown |= SHUTDOWN_RECEIVE;
        }
    }

    /// Closes the direction to the host, where no process reads any more: the guest's writer gets `EPIPE`.
    pub(super) fn lose_host_reader(&mut self) {
        if self.to_host.close() && self.phase == Phase::Open {
            self.pending.shutdown |= SHUTDOWN_RECEIVE;
        }
    }

    /// Ends the connection. Pending packets stay.
    pub(super) fn finish(&mut self) {
        self.phase = Phase::Done;
        self.to_guest = ToGuest::default();
        self.to_host = ToHost::default();
    }
}

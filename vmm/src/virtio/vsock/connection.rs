//! A connection: the guest's socket on one side, the host's end on the other.
//!
//! # vsock in short
//!
//! A connection is named by two ports. Packets carry an operation; there is no loss and no order to
//! restore, as the queues keep both. `REQUEST` asks for a connection, `RESPONSE` grants it, `RST`
//! refuses or ends it at once. `RW` carries bytes, as many as the receiver gave credit for (see
//! `credit`); `CREDIT_UPDATE` gives more credit, `CREDIT_REQUEST` asks for more. `SHUTDOWN` says that its
//! sender will send no more (`SEND`), receive no more (`RCV`), or both. `close(2)` sends `SHUTDOWN` with both
//! flags: the peer confirms by `RST`. Linux keeps what it received readable after either.
//!
//! # States
//!
//! ```text
//!             guest ready           RESPONSE
//!   Waiting ───────────► Connecting ────────► Open ──────── both directions over ──► Closing
//!                            │                 │ │  (we say SHUTDOWN both)              │
//!             RST, time out, │   SHUTDOWN both,│ │ protocol violation, sink overflow    │ RST,
//!             nonsense       │   RST           ▼ │ (we say RST)                         │ time out
//!                            │        Draining │ │                                      │
//!                            ▼  host has it all▼ ▼                                      ▼
//!                           Done ◄───────────────┴──────────────────────────────────────┘
//! ```
//!
//! While Open the two directions end one by one (`direction`): Flowing → Ended (the source is dry but
//! bytes are under way) → Closed (nothing is under way any more). Draining is for a guest that has
//! closed its socket: the guest gets its answer at once, and what it had sent is still delivered, however
//! slowly the host reads.

use std::time::{Duration, Instant};

use super::direction::{ToGuest, ToHost};
use super::handle::{CutReason, Order, RefusedReason, VsockEvent};
use super::host::{Host, HostWriteError};
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::{CLOSE_MS_MAX, CONNECT_MS_MAX, HOST_CID};

/// State of a connection. See the diagram in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Connecting,
    Open,
    Closing,
    Draining,
    Done,
}

/// Packets without payload that are still to be sent: at most one of each kind.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    reset: bool,
    credit_update: bool,
    credit_request: bool,
    /// Flags of the `SHUTDOWN` packet; zero for none.
    shutdown: u32,
}

impl Pending {
    fn any(&self) -> bool {
        let credit = self.credit_update || self.credit_request;
        self.request || self.reset || credit || self.shutdown != 0
    }
}

/// A connection, with its state, its two directions and its pending packets.
#[derive(Debug)]
pub(super) struct Connection {
    /// Id of the order that asked for the connection.
    id: u32,
    host_port: u32,
    guest_port: u32,
    guest_cid: u32,
    state: State,
    /// Deadline of the guest's next answer.
    deadline: Option<Instant>,
    /// The host's end; dropped as soon as no byte is to be read or written any more.
    host: Option<Host>,
    to_guest: ToGuest,
    to_host: ToHost,
    pending: Pending,
}

impl Connection {
    /// A connection that waits for [`Connection::start`].
    pub(super) fn new(order: Order, host_port: u32, guest_cid: u32) -> Self {
        Self {
            id: order.id,
            host_port,
            guest_port: order.port,
            guest_cid,
            state: State::Waiting,
            deadline: None,
            host: Some(Host::new(order.target)),
            to_guest: ToGuest::default(),
            to_host: ToHost::default(),
            pending: Pending::default(),
        }
    }

    /// Asks the guest, which listens now, for the connection.
    pub(super) fn start(&mut self, now: Instant) {
        if self.state == State::Waiting {
            self.state = State::Connecting;
            self.pending.request = true;
            self.deadline = now.checked_add(Duration::from_millis(CONNECT_MS_MAX));
        }
    }

    /// Ends a connection whose host's end cannot be used, before the guest was asked.
    pub(super) fn give_up(&mut self) {
        self.finish();
    }

    pub(super) fn guest_port(&self) -> u32 {
        self.guest_port
    }

    pub(super) fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Time at which [`Connection::expire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the connection has ended and has no reset to send.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Done && !self.pending.reset
    }

    /// Takes a packet from the guest that names this connection.
    pub(super) fn on_packet(
        &mut self,
        header: &Header,
        payload: &[u8],
        now: Instant,
    ) -> Option<VsockEvent> {
        self.to_guest.learn(header);
        let event = match (self.state, header.op()) {
            (_, Some(Op::Reset)) => self.on_reset(),
            (State::Connecting, Some(Op::Response)) if !self.pending.request => {
                self.open();
                Some(VsockEvent::Connected { id: self.id })
            }
            (State::Open, Some(Op::Data)) => self.on_data(payload),
            (State::Open | State::Closing, Some(Op::Shutdown)) => self.on_shutdown(header.flags),
            (State::Open, Some(Op::CreditRequest)) => {
                self.pending.credit_update = true;
                None
            }
            (State::Open | State::Closing, Some(Op::CreditUpdate))
            | (State::Closing, Some(Op::Data | Op::CreditRequest))
            | (State::Draining | State::Done, _) => None,
            _ => self.abort(CutReason::Protocol),
        };
        self.settle(now);
        event
    }

    /// Reacts to the host's end, which may have become readable or writable, or whose peer may have hung up.
    pub(super) fn on_host_event(&mut self, read: bool, write: bool, hang_up: bool, now: Instant) {
        if let Some(host) = &mut self.host {
            host.ready(read, write || hang_up);
        }
        if write {
            self.flush();
        }
        if hang_up {
            self.lose_host_reader();
        }
        self.settle(now);
    }

    /// Gives the guest so much longer for its next answer.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.deadline = self.deadline.and_then(|deadline| deadline.checked_add(by));
    }

    /// Ends the connection when the guest's answer is overdue.
    pub(super) fn expire(&mut self, now: Instant) -> Option<VsockEvent> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        let connecting = self.state == State::Connecting;
        self.pending = Pending {
            reset: !self.pending.request,
            ..Pending::default()
        };
        self.finish();
        connecting.then_some(VsockEvent::Refused {
            id: self.id,
            reason: RefusedReason::TimedOut(self.guest_port),
        })
    }

    /// Whether [`Connection::next_packet`] has a packet. Reads from the host when there is room.
    pub(super) fn has_packet(&mut self, now: Instant) -> bool {
        if let (State::Open, Some(host)) = (self.state, &mut self.host) {
            self.to_guest.refill(host);
            self.pending.credit_request |= self.to_guest.should_ask();
            self.settle(now);
        }
        self.pending.any() || self.has_data()
    }

    /// The next packet for the guest; its payload, of [`Header::len`] bytes, is put into `payload`.
    pub(super) fn next_packet(&mut self, payload: &mut [u8], now: Instant) -> Option<Header> {
        let data = self.has_data();
        let pending = &mut self.pending;
        let (op, flags, len) = if pending.reset {
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
        self.settle(now);
        Some(self.header(op, flags, len))
    }

    /// The header of a packet. Every header has the guest's credit, so no separate update is needed after it.
    fn header(&mut self, op: Op, flags: u32, len: u32) -> Header {
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

    fn has_data(&self) -> bool {
        self.state == State::Open && self.to_guest.has_data()
    }

    fn open(&mut self) {
        self.state = State::Open;
        self.deadline = None;
        if self.to_host.is_closed() {
            self.pending.shutdown |= SHUTDOWN_RECEIVE;
        }
    }

    fn on_reset(&mut self) -> Option<VsockEvent> {
        let id = self.id;
        // The guest's end is closed: no pending packet would find it.
        self.pending = Pending::default();
        match self.state {
            State::Waiting | State::Connecting => {
                self.finish();
                let reason = RefusedReason::Reset(self.guest_port);
                Some(VsockEvent::Refused { id, reason })
            }
            State::Open => {
                let event = self.cut(CutReason::Reset);
                self.drain();
                event
            }
            State::Closing => {
                self.finish();
                None
            }
            State::Draining | State::Done => None,
        }
    }

    fn on_data(&mut self, payload: &[u8]) -> Option<VsockEvent> {
        let host = self.host.as_mut()?;
        match self.to_host.receive(payload, host) {
            Ok(()) => self.pending.credit_update |= self.to_host.update_due(),
            Err(HostWriteError::Gone) => self.lose_host_reader(),
            Err(HostWriteError::Cut(reason)) => return self.abort(reason),
        }
        None
    }

    fn on_shutdown(&mut self, flags: u32) -> Option<VsockEvent> {
        let mut event = None;
        if flags & SHUTDOWN_SEND != 0 && self.to_host.end() {
            event = self.sink_done();
        }
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.stop_host_writer();
        }
        if flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH {
            self.pending = Pending {
                reset: true,
                ..Pending::default()
            };
            self.drain();
        }
        event
    }

    /// Writes bytes that the host did not take before.
    fn flush(&mut self) {
        let Some(host) = &mut self.host else { return };
        match self.to_host.flush(host) {
            Ok(()) => self.pending.credit_update |= self.to_host.update_due(),
            Err(_) => self.lose_host_reader(),
        }
    }

    /// Closes the direction to the host, where no process reads any more: the guest's writer gets `EPIPE`.
    fn lose_host_reader(&mut self) {
        if self.to_host.close() && self.state == State::Open {
            self.pending.shutdown |= SHUTDOWN_RECEIVE;
        }
    }

    /// Closes the direction to the guest, which reads no more: the host's writer gets `EPIPE`.
    fn stop_host_writer(&mut self) {
        self.to_guest.close();
        if let Some(host) = &self.host {
            host.end_read();
        }
    }

    /// Follows up on changes; the only place where a direction or the connection closes by
    /// itself.
    fn settle(&mut self, now: Instant) {
        if self.to_guest.settle() {
            self.pending.shutdown |= SHUTDOWN_SEND;
        }
        if self.to_host.settle()
            && let Some(host) = &self.host
        {
            host.end_write();
        }
        let over = self.to_guest.is_closed() && self.to_host.is_closed();
        match self.state {
            State::Open if over => {
                self.pending.shutdown = SHUTDOWN_BOTH;
                self.state = State::Closing;
                self.host = None;
                self.deadline = now.checked_add(Duration::from_millis(CLOSE_MS_MAX));
            }
            State::Draining if self.to_host.is_closed() => self.finish(),
            _ => {}
        }
    }

    /// Drains: the guest has closed its socket, and bytes that it sent are still delivered.
    fn drain(&mut self) {
        self.stop_host_writer();
        self.to_host.end();
        self.deadline = None;
        self.state = State::Draining;
    }

    fn finish(&mut self) {
        self.state = State::Done;
        self.deadline = None;
        self.host = None;
        self.to_guest = ToGuest::default();
        self.to_host = ToHost::default();
    }

    /// Ends a connection whose guest does not keep to the rules, or whose sink is full.
    fn abort(&mut self, reason: CutReason) -> Option<VsockEvent> {
        let event = match self.state {
            State::Waiting | State::Connecting => Some(VsockEvent::Refused {
                id: self.id,
                reason: RefusedReason::Reset(self.guest_port),
            }),
            _ => self.cut(|_| reason),
        };
        self.pending = Pending {
            reset: true,
            ..Pending::default()
        };
        self.finish();
        event
    }

    /// The event for a sink that is cut before its stream has ended.
    fn cut(&self, reason: impl FnOnce(u64) -> CutReason) -> Option<VsockEvent> {
        match &self.host {
            Some(Host::Sink { written, .. }) if self.to_host.is_flowing() => {
                Some(VsockEvent::SinkFailed {
                    id: self.id,
                    reason: reason(*written),
                })
            }
            _ => None,
        }
    }

    /// The event for a sink whose stream has ended. A sink sends nothing, so the direction to the guest closes with
    /// it.
    fn sink_done(&mut self) -> Option<VsockEvent> {
        let Some(Host::Sink { written, .. }) = &self.host else {
            return None;
        };
        let event = VsockEvent::SinkDone {
            id: self.id,
            bytes: *written,
        };
        self.to_guest.close();
        Some(event)
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
mod scene;
#[cfg(test)]
mod tests;

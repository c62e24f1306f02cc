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
//!
//! `state` is what a connection is; this file adds what runs it, the host's end and the clock.

mod state;

use std::time::{Duration, Instant};

use wasmvm_protocol::inspect::{Inspect, Node};

use super::handle::{CutReason, Order, RefusedReason, VsockEvent};
use super::host::{Host, HostWriteError};
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::{CLOSE_MS_MAX, CONNECT_MS_MAX};
use state::{ConnectionState, Pending, Phase};

/// A connection: its state, its end on the host and its deadline.
#[derive(Debug)]
pub(super) struct Connection {
    state: ConnectionState,
    /// The host's end; dropped as soon as no byte is to be read or written any more.
    host: Option<Host>,
    /// Deadline of the guest's next answer.
    deadline: Option<Instant>,
}

/// The state, without the host's end and the clock.
impl Inspect for Connection {
    fn inspect(&self) -> Node {
        self.state.inspect()
    }
}

impl Connection {
    /// A connection that waits for [`Connection::start`].
    pub(super) fn new(order: Order, host_port: u32, guest_cid: u32) -> Self {
        Self {
            state: ConnectionState::waiting(order.id, host_port, order.port, guest_cid),
            host: Some(Host::new(order.target)),
            deadline: None,
        }
    }

    /// Asks the guest, which listens now, for the connection.
    pub(super) fn start(&mut self, now: Instant) {
        if self.state.phase == Phase::Waiting {
            self.state.phase = Phase::Connecting;
            self.state.pending.request = true;
            self.deadline = now.checked_add(Duration::from_millis(CONNECT_MS_MAX));
        }
    }

    /// Ends a connection whose host's end cannot be used, before the guest was asked.
    pub(super) fn give_up(&mut self) {
        self.finish();
    }

    pub(super) fn host_port(&self) -> u32 {
        self.state.host_port
    }

    pub(super) fn guest_port(&self) -> u32 {
        self.state.guest_port
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
        self.state.is_over()
    }

    /// Takes a packet from the guest that names this connection.
    pub(super) fn on_packet(
        &mut self,
        header: &Header,
        payload: &[u8],
        now: Instant,
    ) -> Option<VsockEvent> {
        self.state.to_guest.learn(header);
        let event = match (self.state.phase, header.op()) {
            (_, Some(Op::Reset)) => self.on_reset(),
            (Phase::Connecting, Some(Op::Response)) if !self.state.pending.request => {
                self.state.open();
                self.deadline = None;
                Some(VsockEvent::Connected { id: self.state.id })
            }
            (Phase::Open, Some(Op::Data)) => self.on_data(payload),
            (Phase::Open | Phase::Closing, Some(Op::Shutdown)) => self.on_shutdown(header.flags),
            (Phase::Open, Some(Op::CreditRequest)) => {
                self.state.pending.credit_update = true;
                None
            }
            (Phase::Open | Phase::Closing, Some(Op::CreditUpdate))
            | (Phase::Closing, Some(Op::Data | Op::CreditRequest))
            | (Phase::Draining | Phase::Done, _) => None,
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
            self.state.lose_host_reader();
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
        let connecting = self.state.phase == Phase::Connecting;
        self.state.pending = Pending::only_reset(!self.state.pending.request);
        self.finish();
        connecting.then_some(VsockEvent::Refused {
            id: self.state.id,
            reason: RefusedReason::TimedOut(self.state.guest_port),
        })
    }

    /// Whether [`Connection::next_packet`] has a packet. Reads from the host when there is room.
    pub(super) fn has_packet(&mut self, now: Instant) -> bool {
        if let (Phase::Open, Some(host)) = (self.state.phase, &mut self.host) {
            self.state.to_guest.refill(host);
            self.state.pending.credit_request |= self.state.to_guest.should_ask();
            self.settle(now);
        }
        self.state.has_packet()
    }

    /// The next packet for the guest; its payload, of [`Header::len`] bytes, is put into `payload`.
    pub(super) fn next_packet(&mut self, payload: &mut [u8], now: Instant) -> Option<Header> {
        let (op, flags, len) = self.state.next_operation(payload)?;
        self.settle(now);
        Some(self.state.header(op, flags, len))
    }

    fn on_reset(&mut self) -> Option<VsockEvent> {
        let id = self.state.id;
        // The guest's end is closed: no pending packet would find it.
        self.state.pending = Pending::default();
        match self.state.phase {
            Phase::Waiting | Phase::Connecting => {
                self.finish();
                let reason = RefusedReason::Reset(self.state.guest_port);
                Some(VsockEvent::Refused { id, reason })
            }
            Phase::Open => {
                let event = self.cut(CutReason::Reset);
                self.drain();
                event
            }
            Phase::Closing => {
                self.finish();
                None
            }
            Phase::Draining | Phase::Done => None,
        }
    }

    fn on_data(&mut self, payload: &[u8]) -> Option<VsockEvent> {
        let host = self.host.as_mut()?;
        match self.state.to_host.receive(payload, host) {
            Ok(()) => self.state.pending.credit_update |= self.state.to_host.update_due(),
            Err(HostWriteError::Gone) => self.state.lose_host_reader(),
            Err(HostWriteError::Cut(reason)) => return self.abort(reason),
        }
        None
    }

    fn on_shutdown(&mut self, flags: u32) -> Option<VsockEvent> {
        let mut event = None;
        if flags & SHUTDOWN_SEND != 0 && self.state.to_host.end() {
            event = self.sink_done();
        }
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.stop_host_writer();
        }
        if flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH {
            self.state.pending = Pending::only_reset(true);
            self.drain();
        }
        event
    }

    /// Writes bytes that the host did not take before.
    fn flush(&mut self) {
        let Some(host) = &mut self.host else { return };
        match self.state.to_host.flush(host) {
            Ok(()) => self.state.pending.credit_update |= self.state.to_host.update_due(),
            Err(_) => self.state.lose_host_reader(),
        }
    }

    /// Closes the direction to the guest, which reads no more: the host's writer gets `EPIPE`.
    fn stop_host_writer(&mut self) {
        self.state.to_guest.close();
        if let Some(host) = &self.host {
            host.end_read();
        }
    }

    /// Follows up on changes; the only place where a direction or the connection closes by
    /// itself.
    fn settle(&mut self, now: Instant) {
        if self.state.to_guest.settle() {
            self.state.pending.shutdown |= SHUTDOWN_SEND;
        }
        if self.state.to_host.settle()
            && let Some(host) = &self.host
        {
            host.end_write();
        }
        let over = self.state.to_guest.is_closed() && self.state.to_host.is_closed();
        match self.state.phase {
            Phase::Open if over => {
                self.state.pending.shutdown = SHUTDOWN_BOTH;
                self.state.phase = Phase::Closing;
                self.host = None;
                self.deadline = now.checked_add(Duration::from_millis(CLOSE_MS_MAX));
            }
            Phase::Draining if self.state.to_host.is_closed() => self.finish(),
            _ => {}
        }
    }

    /// Drains: the guest has closed its socket, and bytes that it sent are still delivered.
    fn drain(&mut self) {
        self.stop_host_writer();
        self.state.to_host.end();
        self.deadline = None;
        self.state.phase = Phase::Draining;
    }

    fn finish(&mut self) {
        self.state.finish();
        self.deadline = None;
        self.host = None;
    }

    /// Ends a connection whose guest does not keep to the rules, or whose sink is full.
    fn abort(&mut self, reason: CutReason) -> Option<VsockEvent> {
        let event = match self.state.phase {
            Phase::Waiting | Phase::Connecting => Some(VsockEvent::Refused {
                id: self.state.id,
                reason: RefusedReason::Reset(self.state.guest_port),
            }),
            _ => self.cut(|_| reason),
        };
        self.state.pending = Pending::only_reset(true);
        self.finish();
        event
    }

    /// The event for a sink that is cut before its stream has ended.
    fn cut(&self, reason: impl FnOnce(u64) -> CutReason) -> Option<VsockEvent> {
        match &self.host {
            Some(Host::Sink { written, .. }) if self.state.to_host.is_flowing() => {
                Some(VsockEvent::SinkFailed {
                    id: self.state.id,
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
            id: self.state.id,
            bytes: *written,
        };
        self.state.to_guest.close();
        Some(event)
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
mod scene;
#[cfg(test)]
mod tests;

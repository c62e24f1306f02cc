//! Finds the connection of a packet, and the packet that the guest gets next.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use wasmvm_protocol::inspect::{Inspect, Node};
use wasmvm_protocol::ports::READY_PORT;

use super::HOST_CID;
use super::connection::Connection;
use super::handle::{Order, RefusedReason, VsockEvent, VsockEventFn};
use super::packet::{Header, Op, TYPE_STREAM};
use super::table::Table;

/// Most resets held for packets that belong to no connection. A guest that sends more such packets without making
/// room for the resets gets no further ones.
pub(super) const RESETS_MAX: usize = 64;

/// Sender of a packet to the guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Speaker {
    /// No connection: the packet is a reset for a packet that belongs to none.
    Nobody,
    /// The connection in this slot of the table.
    Connection(usize),
}

/// Most connections that a look at the device lists, so that the list fits into a control message.
const LISTED_MAX: usize = 32;

/// All connections of one guest and their events.
pub(super) struct Muxer {
    guest_cid: u32,
    /// Waits for host sockets, each under its connection's port.
    epoll: Arc<OwnedFd>,
    table: Table,
    /// Answers to packets that belong to no connection.
    resets: VecDeque<Header>,
    agent_ready: bool,
    on_event: VsockEventFn,
}

impl fmt::Debug for Muxer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Muxer")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

/// The connections by their port on the host, the first [`LISTED_MAX`] of them.
impl Inspect for Muxer {
    fn inspect(&self) -> Node {
        let count = self.table.iter().count();
        let listed = self.table.iter().take(LISTED_MAX);
        let connections = listed.fold(Node::new(), |node, connection| {
            node.with(connection.host_port().to_string(), connection.inspect())
        });
        Node::new()
            .with("agent_ready", self.agent_ready)
            .with("resets_waiting", self.resets.len())
            .with("connection_count", count)
            .with("connections", connections)
    }
}

impl Muxer {
    pub(super) fn new(guest_cid: u32, epoll: Arc<OwnedFd>, on_event: VsockEventFn) -> Self {
        Self {
            guest_cid,
            epoll,
            table: Table::new(),
            resets: VecDeque::with_capacity(RESETS_MAX),
            agent_ready: false,
            on_event,
        }
    }

    pub(super) fn emit(&mut self, event: VsockEvent) {
        (self.on_event)(event);
    }

    /// Makes a connection of an order; the connection asks the guest as soon as the guest is ready.
    pub(super) fn order(&mut self, order: Order, now: Instant) {
        let (id, port) = (order.id, order.port);
        let guest_cid = self.guest_cid;
        let mut host_port = 0;
        let inserted = self.table.insert(|free_port| {
            host_port = free_port;
            Connection::new(order, free_port, guest_cid)
        });
        let Some(connection) = inserted else {
            return self.emit(VsockEvent::Refused {
                id,
                reason: RefusedReason::TableFull,
            });
        };
        // Edges, so that a socket nothing can be done about does not wake the worker again and again.
        // The registration goes with the socket: the connection owns the only copy in this process.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(host_port.into());
        let socket = connection.host().and_then(|host| host.socket());
        let added = socket.map_or(Ok(()), |fd| epoll::add(&*self.epoll, fd, data, flags));
        if let Err(errno) = added {
            connection.give_up();
            self.table.sweep();
            let reason = RefusedReason::Descriptor {
                port,
                source: errno.into(),
            };
            return self.emit(VsockEvent::Refused { id, reason });
        }
        if self.agent_ready {
            connection.start(now);
        }
    }

    /// Takes a packet from the guest.
    pub(super) fn on_packet(&mut self, header: &Header, payload: &[u8], now: Instant) {
        // No other address can be on either side; a packet that claims so gets no answer.
        let cids = (header.src_cid, header.dst_cid);
        if cids != (u64::from(self.guest_cid), u64::from(HOST_CID)) {
            return;
        }
        if header.kind == TYPE_STREAM {
            if header.op() == Some(Op::Request) && header.dst_port == READY_PORT {
                self.guest_is_ready(now);
            } else if let Some(connection) = self.table.get_mut(header.dst_port)
                && connection.guest_port() == header.src_port
            {
                if let Some(event) = connection.on_packet(header, payload, now) {
                    self.emit(event);
                }
                return;
            }
        }
        if header.op() != Some(Op::Reset) && self.resets.len() < RESETS_MAX {
            self.resets.push_back(header.reset());
        }
    }

    fn guest_is_ready(&mut self, now: Instant) {
        if !self.agent_ready {
            self.agent_ready = true;
            self.table
                .iter_mut()
                .for_each(|connection| connection.start(now));
            self.emit(VsockEvent::AgentReady);
        }
    }

    /// Reacts to an event of the host socket of the connection with this port.
    pub(super) fn on_host_event(&mut self, host_port: u32, flags: EventFlags, now: Instant) {
        if let Some(connection) = self.table.get_mut(host_port) {
            let read = flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP);
            let write = flags.contains(EventFlags::OUT);
            let hang_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            connection.on_host_event(read, write, hang_up, now);
        }
    }

    /// The sender of the guest's next packet, if any has one.
    pub(super) fn next_speaker(&mut self, now: Instant) -> Option<Speaker> {
        if self.resets.is_empty() {
            self.table.next_speaker(now).map(Speaker::Connection)
        } else {
            Some(Speaker::Nobody)
        }
    }

    /// The sender's packet for the guest; its payload is put into `payload`.
    pub(super) fn next_packet(
        &mut self,
        speaker: Speaker,
        payload: &mut [u8],
        now: Instant,
    ) -> Option<Header> {
        match speaker {
            Speaker::Nobody => self.resets.pop_front(),
            Speaker::Connection(slot) => self.table.take_turn(slot)?.next_packet(payload, now),
        }
    }

    /// Earliest time at which [`Muxer::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    /// Makes every deadline so much later.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.table
            .iter_mut()
            .for_each(|connection| connection.postpone(by));
    }

    /// Ends connections whose guest's answer is overdue, and frees the slots of ended ones.
    pub(super) fn expire(&mut self, now: Instant) {
        for connection in self.table.iter_mut() {
            if let Some(event) = connection.expire(now) {
                (self.on_event)(event);
            }
        }
        self.table.sweep();
    }
}

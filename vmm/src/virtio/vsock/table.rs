//! The connections of a guest: a fixed number of slots.
//!
//! A connection's port on the host names its slot and how often the slot was used before, so a packet
//! or an event for a connection that has ended never meets a later one in the same slot.

use std::time::Instant;

use super::CONNECTIONS_MAX;
use super::connection::Connection;

/// First port given to connections; Firecracker starts at the same.
const HOST_PORT_BASE: u32 = 1 << 30;
const SLOT_BITS: u32 = CONNECTIONS_MAX.trailing_zeros();
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// Bits of a port that tell the uses of a slot apart.
const USE_MASK: u32 = (1 << (30 - SLOT_BITS)) - 1;

const _: () = assert!(CONNECTIONS_MAX.is_power_of_two());

#[derive(Debug, Default)]
struct Slot {
    uses: u32,
    connection: Option<Connection>,
}

/// The slots, and whose turn is next.
#[derive(Debug)]
pub(super) struct Table {
    slots: [Slot; CONNECTIONS_MAX],
    /// Slot at which the search for a connection with a packet starts.
    turn: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            turn: 0,
        }
    }

    /// Puts the connection that `make` makes of its port into a free slot. `None` when no slot is free.
    pub(super) fn insert(
        &mut self,
        make: impl FnOnce(u32) -> Connection,
    ) -> Option<&mut Connection> {
        self.sweep();
        let index = self
            .slots
            .iter()
            .position(|slot| slot.connection.is_none())?;
        let slot = &mut self.slots[index];
        slot.uses = slot.uses.wrapping_add(1) & USE_MASK;
        Some(slot.connection.insert(make(port(index, slot.uses))))
    }

    /// The connection with this port on the host.
    pub(super) fn get_mut(&mut self, host_port: u32) -> Option<&mut Connection> {
        let index = (host_port & SLOT_MASK) as usize;
        let slot = self.slots.get_mut(index)?;
        (port(index, slot.uses) == host_port)
            .then_some(slot.connection.as_mut())
            .flatten()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots
            .iter()
            .filter_map(|slot| slot.connection.as_ref())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.connection.as_mut())
    }

    /// The slot of the next connection that has a packet for the guest.
    pub(super) fn next_speaker(&mut self, now: Instant) -> Option<usize> {
        let mut slots = (self.turn..CONNECTIONS_MAX).chain(0..self.turn);
        slots.find(|index| {
            let connection = &mut self.slots[*index].connection;
            connection
                .as_mut()
                .is_some_and(|connection| connection.has_packet(now))
        })
    }

    /// The connection in a slot, whose packet is sent next; its next turn then comes last.
    pub(super) fn take_turn(&mut self, index: usize) -> Option<&mut Connection> {
        self.turn = index.wrapping_add(1) % CONNECTIONS_MAX;
        self.slots.get_mut(index)?.connection.as_mut()
    }

    /// Frees the slots of connections that have ended.
    pub(super) fn sweep(&mut self) {
        for slot in &mut self.slots {
            slot.connection.take_if(|connection| connection.is_over());
        }
    }

    /// The earliest deadline of all connections.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.iter().filter_map(Connection::deadline).min()
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "an index is below CONNECTIONS_MAX"
)]
fn port(index: usize, uses: u32) -> u32 {
    HOST_PORT_BASE | uses << SLOT_BITS | index as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::vsock::handle::{Order, Target};
    use wasmvm_protocol::ports::GUEST_CID;

    fn connection(port: u32) -> Connection {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let target = Target::Stream(near.into());
        let order = Order {
            id: 0,
            port: 1025,
            target,
        };
        Connection::new(order, port, GUEST_CID)
    }

    #[test]
    fn a_port_leads_to_its_own_connection_only() {
        let mut table = Table::new();
        let mut stale = Vec::new();
        for _ in 0..3 {
            let mut live = Vec::new();
            while let Some(_inserted) = table.insert(|port| {
                live.push(port);
                connection(port)
            }) {}
            assert_eq!(live.len(), CONNECTIONS_MAX);
            // Below are the worker's own events (`worker`).
            assert!(
                live.iter()
                    .all(|port| *port >= HOST_PORT_BASE && table.get_mut(*port).is_some())
            );
            assert!(
                stale.iter().all(|port| table.get_mut(*port).is_none()),
                "a stale port finds another"
            );
            table.iter_mut().for_each(Connection::give_up);
            table.sweep();
            assert!(live.iter().all(|port| table.get_mut(*port).is_none()));
            stale.extend(live);
        }
    }

    #[test]
    fn ports_of_all_uses_are_told_apart() {
        for index in [0, CONNECTIONS_MAX - 1] {
            for uses in [0, 1, USE_MASK - 1, USE_MASK] {
                let port = port(index, uses);
                assert_eq!((port & SLOT_MASK) as usize, index);
                assert_eq!(port >> SLOT_BITS & USE_MASK, uses);
                assert_eq!(port & HOST_PORT_BASE, HOST_PORT_BASE);
            }
        }
    }
}

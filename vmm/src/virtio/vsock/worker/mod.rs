//! The thread that owns the queues: moves packets between the queues and the [`Muxer`].
//!
//! In short: wait for a kick, a host socket, an order or a deadline; then take all packets from
//! the transmit queue, fill the receive queue with all packets there are, and interrupt the guest
//! once. Notifications are asked for only where the worker is out of work: on the transmit queue when
//! that is empty, on the receive queue when there are packets but no room.
//!
//! A driver that breaks a ring ends the worker, and so the VM: no connection could reach the guest any more.

mod packets;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::inspect::{Inspect, Node};

use super::handle::{Orders, StoppedReason, VsockEvent, VsockEventFn};
use super::muxer::Muxer;
use super::packet::PAYLOAD_BYTES_MAX;
use super::ring::Ring;
use crate::descriptors;
use crate::gate::Gate;
use crate::virtio::{Activation, ActiveQueue, Interrupt, WorkerView, lock};
use packets::{read_packet, write_packet};

/// Most packets moved in one direction before the other direction, orders and sockets get their turn.
const PACKETS_PER_TURN_MAX: usize = 256;
/// Most events taken from epoll at once.
const EVENTS_MAX: usize = 32;

/// Tokens of events that are not about a connection; a connection's token is its port, which is larger.
const TOKEN_RX: u64 = 0;
const TOKEN_TX: u64 = 1;
const TOKEN_ORDERS: u64 = 2;

/// The worker's state: queues, orders, connections.
#[derive(Debug)]
pub(super) struct Worker {
    memory: GuestMemoryMmap,
    rx: Ring,
    tx: Ring,
    /// Not used: the queue's only event notifies a restored guest that its connections have ended.
    _event: ActiveQueue,
    interrupt: Interrupt,
    orders: Orders,
    epoll: Arc<OwnedFd>,
    muxer: Muxer,
    /// Payload of the packet at hand, copied out of or into guest memory.
    payload: Box<[u8]>,
    /// Whether the last turn left work over.
    busy: bool,
}

/// The worker's part that exists before there is a driver.
#[derive(Debug)]
pub(super) struct HostSide {
    orders: Orders,
    epoll: Arc<OwnedFd>,
    muxer: Muxer,
}

impl HostSide {
    /// The host's side of a worker that has no queues yet.
    ///
    /// # Errors
    /// `epoll_create(2)`'s.
    pub(super) fn new(guest_cid: u32, orders: Orders, on_event: VsockEventFn) -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        Ok(Self {
            orders,
            muxer: Muxer::new(guest_cid, Arc::clone(&epoll), on_event),
            epoll,
        })
    }

    /// Reports that there will be no worker.
    pub(super) fn fail(mut self, reason: StoppedReason) {
        self.muxer.emit(VsockEvent::Stopped(reason));
    }
}

impl Worker {
    pub(super) fn new(activation: Activation, queues: [ActiveQueue; 3], host: HostSide) -> Self {
        let event_idx = activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let [rx, tx, event] = queues;
        Self {
            memory: activation.memory,
            rx: Ring::new(rx, event_idx),
            tx: Ring::new(tx, event_idx),
            _event: event,
            interrupt: activation.interrupt,
            orders: host.orders,
            muxer: host.muxer,
            epoll: host.epoll,
            payload: vec![0; PAYLOAD_BYTES_MAX].into_boxed_slice(),
            // The driver may have filled its queues before the device was ready to be kicked.
            busy: true,
        }
    }

    /// Works until the process ends or the guest breaks its queues, and stands still while `gate` is
    /// closed; `view` shows the worker between two turns.
    pub(super) fn run(self, gate: &Gate, view: &WorkerView) {
        let worker = Arc::new(Mutex::new(self));
        view.show(&worker);
        if let Err(reason) = work(&worker, gate) {
            lock(&worker).muxer.emit(VsockEvent::Stopped(reason));
        }
    }

    /// Registers all that wakes the worker; returns what to wait by, and what wakes.
    fn wait_for_work(&self) -> io::Result<(Arc<OwnedFd>, Arc<EventFd>)> {
        wait_for(&self.epoll, self.rx.kick(), TOKEN_RX)?;
        wait_for(&self.epoll, self.tx.kick(), TOKEN_TX)?;
        wait_for(&self.epoll, &self.orders.wake, TOKEN_ORDERS)?;
        Ok((Arc::clone(&self.epoll), Arc::clone(&self.orders.wake)))
    }

    /// Does one turn of work, of which `events` have notified the worker.
    fn turn(&mut self, events: &[Event]) -> Result<(), StoppedReason> {
        let now = Instant::now();
        self.take_events(events, now)?;
        while let Ok(order) = self.orders.receiver.try_recv() {
            self.muxer.order(order, now);
        }
        let more_from_guest = self.take_from_guest(now);
        self.muxer.expire(now);
        let more_to_guest = self.give_to_guest(now);
        self.busy = more_from_guest || more_to_guest;
        let tx_used = self.tx.needs_interrupt(&self.memory);
        let rx_used = self.rx.needs_interrupt(&self.memory);
        if tx_used || rx_used {
            self.interrupt.used_ring()?;
        }
        for (queue, ring) in [&mut self.rx, &mut self.tx].into_iter().enumerate() {
            if let Some(source) = ring.take_error() {
                return Err(StoppedReason::Ring { queue, source });
            }
        }
        Ok(())
    }

    /// Clears the kicks, and passes events of the host's sockets to their connections.
    fn take_events(&mut self, events: &[Event], now: Instant) -> io::Result<()> {
        for Event { flags, data } in events.iter().copied() {
            let (flags, token) = (flags, data.u64());
            match token {
                TOKEN_RX => descriptors::clear_event(self.rx.kick())?,
                TOKEN_TX => descriptors::clear_event(self.tx.kick())?,
                TOKEN_ORDERS => descriptors::clear_event(&self.orders.wake)?,
                _ => {
                    if let Ok(port) = u32::try_from(token) {
                        self.muxer.on_host_event(port, flags, now);
                    }
                }
            }
        }
        Ok(())
    }

    /// How long to wait: not at all with work left over, else until the next deadline.
    fn timeout(&self) -> Option<Timespec> {
        if self.busy {
            return Some(Timespec::default());
        }
        let rest = self
            .muxer
            .next_deadline()?
            .saturating_duration_since(Instant::now());
        // A whole millisecond more, so that the deadline has passed by then.
        Timespec::try_from(rest.saturating_add(Duration::from_millis(1))).ok()
    }

    /// Hands the guest's packets to the muxer; true when there may be more.
    fn take_from_guest(&mut self, now: Instant) -> bool {
        for _ in 0..PACKETS_PER_TURN_MAX {
            let Some(descriptors) = self.tx.pop(&self.memory) else {
                return false;
            };
            let head = descriptors.head_index();
            // A malformed packet names no connection to reset.
            if let Ok(header) = read_packet(&self.memory, descriptors, &mut self.payload) {
                let payload = &self.payload[..header.len as usize];
                self.muxer.on_packet(&header, payload, now);
            }
            self.tx.put_used(&self.memory, head, 0);
        }
        true
    }

    /// Hands the muxer's packets to the guest; true when there may be more and room for them.
    fn give_to_guest(&mut self, now: Instant) -> bool {
        for _ in 0..PACKETS_PER_TURN_MAX {
            let Some(speaker) = self.muxer.next_speaker(now) else {
                return false;
            };
            let Some(descriptors) = self.rx.pop(&self.memory) else {
                return false;
            };
            let head = descriptors.head_index();
            let muxer = &mut self.muxer;
            let written = write_packet(&self.memory, descriptors, &mut self.payload, |payload| {
                muxer.next_packet(speaker, payload, now)
            });
            // A buffer that holds no packet is given back empty.
            self.rx.put_used(&self.memory, head, written.unwrap_or(0));
        }
        true
    }
}

/// Waits for work without the lock, and works with it.
fn work(worker: &Mutex<Worker>, gate: &Gate) -> Result<(), StoppedReason> {
    let (epoll, wake) = lock(worker).wait_for_work()?;
    // Full means that the worker is woken already.
    let pass = gate.enter(move || drop(wake.write(1)));
    let mut room = [MaybeUninit::uninit(); EVENTS_MAX];
    loop {
        if pass.is_closed() {
            let parked = pass.park();
            // The guest did not run for this time, so its deadlines move.
            lock(worker).muxer.postpone(parked);
        }
        let timeout = lock(worker).timeout();
        let events = match epoll::wait(&*epoll, &mut room, timeout.as_ref()) {
            Err(Errno::INTR) => &[],
            Err(errno) => return Err(StoppedReason::Os(errno.into())),
            Ok((events, _)) => &*events,
        };
        lock(worker).turn(events)?;
    }
}

/// The rings and the connections.
impl Inspect for Worker {
    fn inspect(&self) -> Node {
        self.muxer
            .inspect()
            .with("receive_queue", self.rx.inspect())
            .with("transmit_queue", self.tx.inspect())
    }
}

/// Registers an event descriptor: epoll reports it as long as it is readable.
fn wait_for(epoll: &OwnedFd, event: &EventFd, token: u64) -> io::Result<()> {
    // epoll forgets a descriptor that is closed.
    Ok(epoll::add(
        epoll,
        descriptors::of_event(event),
        EventData::new_u64(token),
        EventFlags::IN,
    )?)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

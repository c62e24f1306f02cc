//! A guest's driver for tests: rings in guest memory, kicks and interrupts as the specification has
//! them, and just enough vsock to play a guest's kernel.

use std::num::Wrapping;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wasmvm_protocol::ports::{GUEST_CID, READY_PORT};

use super::device::{QUEUE_SIZES, VsockDevice};
use super::handle::{VsockEvent, VsockHandle};
use super::packet::{HEADER_BYTES, Header, Op, TYPE_STREAM};
use super::{BUFFER_BYTES_MAX, HOST_CID};
use crate::gate::Gate;
use crate::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};

/// A test fails when nothing happens for so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
/// What Linux offers: a page without its `sk_buff`'s overhead.
const RX_BUFFER_BYTES: u32 = 3776;

/// The driver's half of one virtqueue.
pub(super) struct Driver {
    memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    event_idx: bool,
    added: Wrapping<u16>,
    seen: Wrapping<u16>,
    pub(super) kick: EventFd,
}

impl Driver {
    fn new(memory: &GuestMemoryMmap, base: u64, size: u16, event_idx: bool) -> Self {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let zero = Wrapping(0);
        Self {
            memory: memory.clone(),
            base,
            size,
            event_idx,
            added: zero,
            seen: zero,
            kick,
        }
    }

    fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.avail() + 4 + 2 * u64::from(self.size) + 2).next_multiple_of(4)
    }

    fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.avail()), Some(0));
        queue.set_used_ring_address(low(self.used()), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        ActiveQueue {
            queue,
            kick: self.kick.try_clone().unwrap(),
        }
    }

    fn get(&self, address: u64) -> u16 {
        self.memory
            .load(GuestAddress(address), std::sync::atomic::Ordering::SeqCst)
            .unwrap()
    }

    pub(super) fn set(&self, address: u64, value: u16) {
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory
            .store(value, GuestAddress(address), order)
            .unwrap();
    }

    /// Overwrites the index of the available ring, as only a hostile driver does.
    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.set(self.avail() + 2, idx);
    }

    pub(super) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.base + 16 * u64::from(index));
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Adds a chain and kicks when the device asked for it.
    pub(super) fn add(&mut self, head: u16) {
        self.set(
            self.avail() + 4 + 2 * u64::from(self.added.0 % self.size),
            head,
        );
        let old = self.added;
        self.added += 1;
        self.set_avail_idx(self.added.0);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = Wrapping(self.get(self.used() + 4 + 8 * u64::from(self.size)));
            self.added - event - Wrapping(1) < self.added - old
        } else {
            self.get(self.used()) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// The head and the length of the next chain that came back.
    fn take_used(&mut self) -> Option<(u16, u32)> {
        // Ask for an interrupt first, so that none is missed.
        self.set(self.avail() + 4 + 2 * u64::from(self.size), self.seen.0);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if self.get(self.used() + 2) == self.seen.0 {
            return None;
        }
        let at = self.used() + 4 + 8 * u64::from(self.seen.0 % self.size);
        self.seen += 1;
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((self.get(at), len))
    }
}

/// A guest with an active device.
pub(super) struct MockGuest {
    pub(super) memory: GuestMemoryMmap,
    pub(super) rx: Driver,
    pub(super) tx: Driver,
    line: EventFd,
    pub(super) interrupts: usize,
    pub(super) handle: VsockHandle,
    pub(super) gate: Gate,
    pub(super) device: VsockDevice,
    events: Receiver<VsockEvent>,
    /// What every packet says about the guest's credit.
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
    _event: Driver,
}

impl MockGuest {
    /// A guest that has offered all its receive buffers.
    pub(super) fn new(event_idx: bool) -> Self {
        let mut guest = Self::without_buffers(event_idx);
        (0..QUEUE_SIZES[0]).for_each(|index| guest.offer(index));
        guest
    }

    pub(super) fn without_buffers(event_idx: bool) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x80_0000)]).unwrap();
        let driver = |index: usize, base| Driver::new(&memory, base, QUEUE_SIZES[index], event_idx);
        let (rx, tx, event) = (driver(0, 0x1000), driver(1, 0x3000), driver(2, 0x5000));
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let (sender, events) = channel();
        let on_event = Box::new(move |event| drop(sender.send(event)));
        let gate = Gate::default();
        let (mut device, handle) = VsockDevice::new(GUEST_CID, &gate, on_event).unwrap();
        let activation = Activation {
            memory: memory.clone(),
            features: u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX,
            queues: vec![rx.active(), tx.active(), event.active()],
            interrupt: Interrupt::new(line.try_clone().unwrap()),
        };
        device.activate(activation).unwrap();
        Self {
            memory,
            rx,
            tx,
            line,
            interrupts: 0,
            handle,
            gate,
            device,
            events,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
            _event: event,
        }
    }

    /// Offers one receive buffer.
    pub(super) fn offer(&mut self, index: u16) {
        let at = 0x1_0000 + 0x1000 * u64::from(index);
        self.rx.describe(index, at, RX_BUFFER_BYTES, DESC_WRITE, 0);
        self.rx.add(index);
    }

    /// Waits until `take` gives something, woken by interrupts.
    pub(super) fn wait<T>(&mut self, mut take: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(taken) = take(self) {
                return taken;
            }
            assert!(
                readable(&self.line, PATIENCE),
                "no interrupt within {PATIENCE:?}"
            );
            self.interrupts += 1;
            self.line.read().unwrap();
        }
    }

    /// The next packet from the host, if there is one; its buffer is offered again.
    pub(super) fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let (index, len) = self.rx.take_used()?;
        let at = 0x1_0000 + 0x1000 * u64::from(index);
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        self.offer(index);
        let payload = bytes.split_off(HEADER_BYTES);
        let header = Header::decode(&bytes.try_into().unwrap());
        assert_eq!(header.len as usize, payload.len());
        assert_eq!(
            (header.src_cid, header.dst_cid),
            (HOST_CID.into(), GUEST_CID.into())
        );
        assert_eq!(
            header.buf_alloc,
            if header.op == 3 {
                header.buf_alloc
            } else {
                BUFFER_BYTES_MAX
            }
        );
        Some((header, payload))
    }

    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        self.wait(Self::poll)
    }

    /// The next packet, which must be this one.
    pub(super) fn expect(&mut self, op: Op) -> Header {
        let (header, payload) = self.receive();
        assert_eq!(header.op(), Some(op), "{header:?}");
        assert!(payload.is_empty());
        header
    }

    /// Puts raw bytes on the transmit queue, the first 44 in a descriptor of their own, and waits
    /// for a free slot first.
    pub(super) fn send_raw(&mut self, header: &[u8], payload: &[u8]) {
        let slots = self.tx.size / 2;
        self.wait(|guest| {
            while guest.tx.take_used().is_some() {}
            ((guest.tx.added - guest.tx.seen).0 < slots).then_some(())
        });
        let slot = self.tx.added.0 % slots;
        let at = 0x10_0000 + 0x1_1000 * u64::from(slot);
        self.memory.write_slice(header, GuestAddress(at)).unwrap();
        self.memory
            .write_slice(payload, GuestAddress(at + 0x1000))
            .unwrap();
        let head = 2 * slot;
        let flags = if payload.is_empty() { 0 } else { DESC_NEXT };
        self.tx.describe(
            head,
            at,
            u32::try_from(header.len()).unwrap(),
            flags,
            head + 1,
        );
        let len = u32::try_from(payload.len()).unwrap();
        self.tx.describe(head + 1, at + 0x1000, len, 0, 0);
        self.tx.add(head);
    }

    pub(super) fn header(&self, op: Op, guest_port: u32, host_port: u32) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    pub(super) fn send(&mut self, mut header: Header, payload: &[u8]) {
        header.len = u32::try_from(payload.len()).unwrap();
        self.send_raw(&header.encode(), payload);
    }

    /// Answers a packet of the host's.
    pub(super) fn answer(&mut self, to: &Header, op: Op, flags: u32, payload: &[u8]) {
        let header = Header {
            flags,
            ..self.header(op, to.dst_port, to.src_port)
        };
        self.send(header, payload);
    }

    /// Says that the guest listens.
    pub(super) fn get_ready(&mut self) {
        self.send(self.header(Op::Request, 999, READY_PORT), &[]);
        assert!(matches!(self.event(), VsockEvent::AgentReady));
        let reset = self.expect(Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (READY_PORT, 999));
    }

    /// Accepts the connection the host asks for next; returns the request.
    pub(super) fn accept(&mut self, id: u32) -> Header {
        let request = self.expect(Op::Request);
        self.answer(&request, Op::Response, 0, &[]);
        assert!(matches!(self.event(), VsockEvent::Connected { id: got } if got == id));
        request
    }

    /// The next event.
    pub(super) fn event(&self) -> VsockEvent {
        self.events.recv_timeout(PATIENCE).expect("no event")
    }
}

/// Waits until an event descriptor is readable.
pub(super) fn readable(event: &EventFd, patience: Duration) -> bool {
    let fd = crate::descriptors::of_event(event);
    let timeout = Timespec::try_from(patience).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

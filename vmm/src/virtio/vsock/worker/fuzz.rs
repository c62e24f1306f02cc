//! The worker between a guest that puts anything on its rings and a host that does anything at its ends.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use arbitrary::{Result, Unstructured};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};
use wasmvm_protocol::ports::{GUEST_CID, READY_PORT};

use super::*;
use crate::virtio::fuzz::{GuestRing, NEXT, WRITE, event, near};
use crate::virtio::vsock::HOST_CID;
use crate::virtio::vsock::device::QUEUE_SIZES;
use crate::virtio::vsock::handle::VsockHandle;
use crate::virtio::vsock::packet::{HEADER_BYTES, Header, Op, TYPE_STREAM};

const MEMORY_BYTES: u64 = 0x10_0000;
const RINGS: [u64; 3] = [0x1000, 0x3000, 0x5000];
/// Receive buffers, headers and payload of what is sent.
const RECEIVE: u64 = 0x1_0000;
const HEADERS: u64 = 0x6_0000;
const PAYLOAD: u64 = 0x8_0000;
/// The guest's port of every order.
const PORT: u32 = 1025;
/// Longest that a connection is waited for.
const LATER: Duration = Duration::from_secs(3600);

/// What became of an order.
#[derive(Debug, Default)]
struct Fate {
    answers: u32,
    connected: bool,
    sink_ends: u32,
}

/// Every order is answered once, a sink's end told once and only of one that was connected; the worker
/// stops only for a broken ring. What it holds is measured by the caller.
pub fn vsock_worker(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let len = usize::try_from(MEMORY_BYTES).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap();
    let mut scene = Scene::new(&memory);
    while !u.is_empty() && scene.alive {
        if scene.step(&mut u).is_err() {
            break;
        }
    }
    scene.finish();
}

struct Scene<'m> {
    memory: &'m GuestMemoryMmap,
    worker: Worker,
    handle: VsockHandle,
    rx: GuestRing<'m>,
    tx: GuestRing<'m>,
    far_ends: Vec<UnixStream>,
    orders: Vec<u32>,
    fates: Arc<Mutex<HashMap<u32, Fate>>>,
    alive: bool,
}

impl<'m> Scene<'m> {
    fn new(memory: &'m GuestMemoryMmap) -> Self {
        let rings: Vec<_> = RINGS.into_iter().zip(QUEUE_SIZES).collect();
        let rings: Vec<_> = rings
            .iter()
            .map(|(base, size)| GuestRing::new(memory, *base, *size))
            .collect();
        let [rx, tx, other] = <[_; 3]>::try_from(rings).unwrap_or_else(|_| unreachable!());
        let active = |ring: &GuestRing<'_>| ActiveQueue {
            queue: ring.queue(),
            kick: event(),
        };
        let queues = [active(&rx), active(&tx), active(&other)];
        let fates = Arc::new(Mutex::new(HashMap::new()));
        let told = Arc::clone(&fates);
        let (handle, orders) = VsockHandle::new().unwrap();
        let on_event = Box::new(move |event| tell(&told, &event));
        let host = HostSide::new(GUEST_CID, orders, on_event).unwrap();
        let activation = Activation {
            memory: memory.clone(),
            features: 0,
            queues: Vec::new(),
            interrupt: Interrupt::new(event()),
        };
        Self {
            memory,
            worker: Worker::new(activation, queues, host),
            handle,
            rx,
            tx,
            far_ends: Vec::new(),
            orders: Vec::new(),
            fates,
            alive: true,
        }
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=9)? {
            0..=2 => self.send_packet(u)?,
            3 => self.offer_buffer(u)?,
            4 => self.order(u)?,
            5 => self.move_host(u)?,
            6 => self.scribble(u)?,
            7 => self.send_anything(u)?,
            8 => {
                let now = Instant::now() + Duration::from_millis(u.arbitrary::<u16>()?.into());
                self.worker.muxer.expire(now);
            }
            _ => {
                let ready = header(Op::Request as u16, 999, READY_PORT);
                self.put(&ready.encode(), 0, 0);
            }
        }
        // Never waits: a turn with work left over does not.
        self.worker.busy = true;
        let timeout = self.worker.timeout();
        let mut room = [MaybeUninit::uninit(); EVENTS_MAX];
        let waited = epoll::wait(&*self.worker.epoll, &mut room, timeout.as_ref());
        let (events, _) = waited.unwrap();
        match self.worker.turn(events) {
            Ok(()) => {}
            Err(StoppedReason::Ring { .. }) => self.alive = false,
            Err(other) => panic!("the worker stopped: {other:?}"),
        }
        Ok(())
    }

    fn send_packet(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        // The first uses of the table's first slots, and their neighbours.
        let host_port = 1 << 30 | u.int_in_range(0..=2_u32)? << 6 | u.int_in_range(0..=4_u32)?;
        let mut header = header(u.int_in_range(0..=8)?, PORT, host_port);
        let len = u.arbitrary::<u32>()? >> u.int_in_range(15..=31)?;
        header.len = if u.ratio(1, 12)? { u.arbitrary()? } else { len };
        header.flags = u.int_in_range(0..=3)?;
        (header.buf_alloc, header.fwd_cnt) = (u.arbitrary()?, u.arbitrary()?);
        if u.ratio(1, 4)? {
            (header.buf_alloc, header.fwd_cnt) = (0x1_0000, 0);
        }
        if u.ratio(1, 16)? {
            (header.src_cid, header.kind) = (u.arbitrary()?, u.arbitrary()?);
        }
        if u.ratio(1, 16)? {
            header.src_port = u.arbitrary()?;
        }
        self.put(&header.encode(), len, u.int_in_range(0..=44)?);
        Ok(())
    }

    /// A packet in up to three descriptors, its header cut at `cut`.
    fn put(&mut self, bytes: &[u8; HEADER_BYTES], payload: u32, cut: u32) {
        self.memory
            .write_slice(bytes, GuestAddress(HEADERS))
            .unwrap();
        let rest = u32::try_from(HEADER_BYTES).unwrap() - cut;
        self.tx.describe(0, HEADERS, cut, NEXT, 1);
        let flags = if payload == 0 { 0 } else { NEXT };
        self.tx
            .describe(1, HEADERS + u64::from(cut), rest, flags, 2);
        self.tx.describe(2, PAYLOAD, payload, 0, 0);
        self.tx.offer(0);
    }

    fn offer_buffer(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let len = *u.choose(&[0, 1, 43, 44, 45, 3776, 0x1_0000, u32::MAX])?;
        let index = u.int_in_range(0..=31)?;
        let at = RECEIVE + 0x1000 * u64::from(index);
        self.rx.describe(index, at, len, WRITE, 0);
        self.rx.offer(index);
        Ok(())
    }

    fn order(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let id = u32::try_from(self.orders.len()).unwrap();
        let taken = if u.ratio(1, 3)? {
            let file = File::from(memfd_create("sink", MemfdFlags::CLOEXEC).unwrap());
            self.handle
                .sink(id, PORT, file, u.arbitrary::<u16>()?.into())
        } else {
            let (far, near) = UnixStream::pair().unwrap();
            far.set_nonblocking(true).unwrap();
            self.far_ends.push(far);
            self.handle.connect(id, PORT, near.into())
        };
        taken.unwrap();
        self.orders.push(id);
        Ok(())
    }

    fn move_host(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.far_ends.is_empty() {
            return Ok(());
        }
        let index = u.choose_index(self.far_ends.len())?;
        let len = usize::from(u.arbitrary::<u16>()?);
        let mut far = &self.far_ends[index];
        match u.int_in_range(0..=3)? {
            0 => drop(far.write(&vec![7; len])),
            1 => drop(far.read(&mut vec![0; len])),
            2 => drop(
                far.shutdown(*u.choose(&[std::net::Shutdown::Write, std::net::Shutdown::Both])?),
            ),
            _ => drop(self.far_ends.swap_remove(index)),
        }
        Ok(())
    }

    /// Writes somewhere into the rings.
    fn scribble(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let at = RINGS[0] + u64::from(u.arbitrary::<u16>()? % 0x5000);
        let value = u.arbitrary::<u16>()?;
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
        Ok(())
    }

    fn send_anything(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        for index in 0..u.int_in_range(1..=4)? {
            let address = near(u, &[HEADERS, PAYLOAD, RINGS[1], MEMORY_BYTES])?;
            self.tx.describe(
                8 + index,
                address,
                u.arbitrary()?,
                u.arbitrary()?,
                u.arbitrary()?,
            );
        }
        self.tx.offer(u.int_in_range(0..=70)?);
        Ok(())
    }

    fn finish(mut self) {
        // Says that it listens, and nothing more: each order that waits is then asked for and refused.
        if self.alive {
            let now = Instant::now();
            while let Ok(order) = self.worker.orders.receiver.try_recv() {
                self.worker.muxer.order(order, now);
            }
            let ready = header(Op::Request as u16, 999, READY_PORT);
            self.worker.muxer.on_packet(&ready, &[], now);
            self.worker.muxer.expire(now + LATER);
        }
        let fates = self.fates.lock().unwrap_or_else(PoisonError::into_inner);
        for id in self.orders {
            let fate = fates.get(&id);
            let answers = fate.map_or(0, |fate| fate.answers);
            assert!(
                answers == 1 || !self.alive && answers == 0,
                "order {id}: {fate:?}"
            );
        }
        assert!(fates.values().all(|fate| fate.sink_ends <= 1), "{fates:?}");
    }
}

fn tell(fates: &Mutex<HashMap<u32, Fate>>, event: &VsockEvent) {
    let mut fates = fates.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
        VsockEvent::Connected { id } => {
            let fate = fates.entry(*id).or_default();
            fate.answers += 1;
            fate.connected = true;
        }
        VsockEvent::Refused { id, .. } => fates.entry(*id).or_default().answers += 1,
        VsockEvent::SinkDone { id, .. } | VsockEvent::SinkFailed { id, .. } => {
            let fate = fates.entry(*id).or_default();
            fate.sink_ends += 1;
            assert!(fate.connected, "the end of a sink that was never connected");
        }
        VsockEvent::AgentReady | VsockEvent::Stopped(_) => {}
    }
}

fn header(op: u16, src_port: u32, dst_port: u32) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: HOST_CID.into(),
        src_port,
        dst_port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 0x1_0000,
        ..Header::default()
    }
}

//! A message and the room for its answer, as the library takes both: as descriptors in a memory.
//!
//! `virtiofsd` reads requests from, and writes answers to, a guest's memory by a chain of a virtqueue (virtio 1.2
//! §2.7). Here that memory is the process's own, with one queue of two descriptors that this module fills in, so
//! that no other process changes a message while the library reads it.

use std::io;
use std::os::fd::AsFd;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::message::{self, BYTES_MAX};

type Memory = GuestMemoryMmap<BitmapMmapRegion>;

const TABLE: GuestAddress = GuestAddress(0);
/// Address of the second descriptor, behind the first one of 16 bytes.
const ANSWER_DESCRIPTOR: GuestAddress = GuestAddress(16);
const AVAILABLE: GuestAddress = GuestAddress(0x100);
/// Address of the available ring's index, behind the flags of 16 bits.
const AVAILABLE_INDEX: GuestAddress = GuestAddress(0x102);
const USED: GuestAddress = GuestAddress(0x200);
const MESSAGE: GuestAddress = GuestAddress(0x1000);
const ANSWER: GuestAddress = GuestAddress(0x1000 + BYTES_MAX as u64);
const MEMORY_BYTES: usize = 0x1000 + 2 * BYTES_MAX;
const ANSWER_BYTES: u32 = 32 * 1024;
const _: () = assert!(ANSWER_BYTES as usize == BYTES_MAX);
/// Descriptors of the queue: the message, the answer.
const QUEUE_SIZE: u16 = 2;
/// `VIRTQ_DESC_F_NEXT` and `VIRTQ_DESC_F_WRITE` of a descriptor (virtio 1.2 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The memory, its queue, and a buffer for one message: see the module's documentation.
pub(super) struct Letterbox {
    memory: Memory,
    queue: Queue,
    available: u16,
    scratch: Vec<u8>,
}

impl Letterbox {
    pub(super) fn new() -> io::Result<Self> {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]);
        let mut queue = Queue::new(QUEUE_SIZE).map_err(io::Error::other)?;
        let placed = queue
            .try_set_desc_table_address(TABLE)
            .and_then(|()| queue.try_set_avail_ring_address(AVAILABLE))
            .and_then(|()| queue.try_set_used_ring_address(USED));
        placed.map_err(io::Error::other)?;
        queue.set_ready(true);
        let memory = memory.map_err(io::Error::other)?;
        // Every entry of the available ring names descriptor 0, which the memory's zeros do.
        let answer = Descriptor::new(ANSWER.0, ANSWER_BYTES, WRITE, 0);
        memory
            .write_obj(answer, ANSWER_DESCRIPTOR)
            .map_err(io::Error::other)?;
        Ok(Self {
            memory,
            queue,
            available: 0,
            scratch: vec![0; BYTES_MAX],
        })
    }

    /// Takes the next message into the memory; `None` when the other end of the socket is closed.
    ///
    /// # Errors
    /// Those of [`message::receive`].
    pub(super) fn take_in(&mut self, socket: impl AsFd) -> io::Result<Option<&[u8]>> {
        let (length, _no_file) = message::receive(socket, &mut self.scratch)?;
        let message = self.scratch.get(..length).unwrap_or_default();
        self.memory
            .write_slice(message, MESSAGE)
            .map_err(io::Error::other)?;
        Ok((length > 0).then_some(message))
    }

    /// The message of `length` bytes, and the room for its answer.
    ///
    /// # Errors
    /// None that can come from a message: the memory and the queue are this module's.
    pub(super) fn open(&mut self, length: usize) -> io::Result<(Reader<'_>, Writer<'_>)> {
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let message = Descriptor::new(MESSAGE.0, length, NEXT, 1);
        self.available = self.available.wrapping_add(1);
        let written = self.memory.write_obj(message, TABLE);
        written
            .and_then(|()| self.memory.write_obj(self.available, AVAILABLE_INDEX))
            .map_err(io::Error::other)?;
        let mut chains = self.queue.iter(&self.memory).map_err(io::Error::other)?;
        let chain: DescriptorChain<&Memory> = chains.next().ok_or(io::ErrorKind::InvalidData)?;
        let reader = Reader::new(&self.memory, chain.clone()).map_err(io::Error::other)?;
        let writer = Writer::new(&self.memory, chain).map_err(io::Error::other)?;
        Ok((reader, writer))
    }

    /// The first `length` bytes of the answer.
    ///
    /// # Errors
    /// `InvalidData` when the answer has no room for so many bytes.
    pub(super) fn answer(&mut self, length: usize) -> io::Result<&[u8]> {
        let answer = self.scratch.get_mut(..length);
        let answer = answer.ok_or(io::ErrorKind::InvalidData)?;
        self.memory
            .read_slice(answer, ANSWER)
            .map_err(io::Error::other)?;
        Ok(answer)
    }
}

//! The devices' fuzz targets, and the driver's half of a queue for them.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

pub use super::fs::fuzz::{fs_ring, fuse, prepare as prepare_fuse};
pub use super::mmio::fuzz::mmio;
pub use super::queue_setup::fuzz::queue_setup;
pub use super::vsock::fuzz::{chain, vsock_connection, vsock_worker};

use arbitrary::{Result, Unstructured};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// `VRING_DESC_F_NEXT`.
pub(super) const NEXT: u16 = 1;
/// `VRING_DESC_F_WRITE`.
pub(super) const WRITE: u16 = 2;
/// Bytes from one part of a queue to the next: none of the queues here has a larger part.
const PART_BYTES: u64 = 0x800;

/// The driver's half of a queue: it says what it likes, and is never stopped from doing so.
pub(super) struct GuestRing<'m> {
    memory: &'m GuestMemoryMmap,
    base: u64,
    size: u16,
    added: u16,
}

impl<'m> GuestRing<'m> {
    /// Descriptors at `base`, the available ring 2 KiB, the used ring 4 KiB behind.
    pub(super) fn new(memory: &'m GuestMemoryMmap, base: u64, size: u16) -> Self {
        Self {
            memory,
            base,
            size,
            added: 0,
        }
    }

    /// The device's half.
    pub(super) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.base))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.available()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.available() + PART_BYTES))
            .unwrap();
        queue.set_ready(true);
        queue
    }

    pub(super) fn available(&self) -> u64 {
        self.base + PART_BYTES
    }

    pub(super) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index % self.size);
        describe(self.memory, at, address, len, flags, next);
    }

    /// Adds a chain to the available ring.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.added % self.size);
        let entry = GuestAddress(self.available() + 4 + 2 * slot);
        self.memory.write_obj(head, entry).unwrap();
        self.added = self.added.wrapping_add(1);
        let index = GuestAddress(self.available() + 2);
        self.memory.write_obj(self.added, index).unwrap();
    }
}

/// One descriptor, wherever: also into an indirect table.
pub(super) fn describe(
    memory: &GuestMemoryMmap,
    at: u64,
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

pub(super) fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// A number near one of `edges`, or any: what is off by a few is what goes wrong.
pub(crate) fn near(u: &mut Unstructured<'_>, edges: &[u64]) -> Result<u64> {
    if u.ratio(1, 8)? {
        return u.arbitrary();
    }
    let edge = *u.choose(edges)?;
    let off = i64::from(u.arbitrary::<i8>()?);
    Ok(edge.wrapping_add_signed(off))
}

//! Set-up of one queue by the driver, until `DRIVER_OK` freezes it.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use wasmvm_protocol::inspect::{Inspect, Node};

/// The registers of one queue, unchecked until [`QueueSetup::build`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueSetup {
    size_max: u16,
    size: u16,
    ready: bool,
    /// Guest-physical address of the descriptor table; `available` and `used` are those of the rings.
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl Inspect for QueueSetup {
    fn inspect(&self) -> Node {
        Node::new()
            .with("size", self.size)
            .with("ready", self.ready)
    }
}

impl QueueSetup {
    pub(super) fn new(size_max: u16) -> Self {
        Self {
            size_max,
            size: size_max,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.size_max);
    }

    pub(super) fn size_max(&self) -> u16 {
        self.size_max
    }

    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    pub(super) fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// Sets the size. Sizes that don't fit become 0, which no queue can have.
    pub(super) fn set_size(&mut self, size: u32) {
        self.size = u16::try_from(size).unwrap_or(0);
    }

    /// The queue, if it is ready, of a valid size, aligned and in guest memory as a whole.
    pub(super) fn build(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Option<Queue> {
        let entries = usize::from(self.size);
        let mut queue = Queue::new(self.size_max).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .ok()?;
        // Virtio 1.2 §2.7: descriptor 16 bytes; flags, index, ring and event word around entries
        // of 2 and of 8 bytes.
        let parts = [
            (self.descriptors, entries.saturating_mul(16)),
            (self.available, entries.saturating_mul(2).saturating_add(6)),
            (self.used, entries.saturating_mul(8).saturating_add(6)),
        ];
        let inside = |(address, bytes)| memory.check_range(GuestAddress(address), bytes);
        if !self.ready || !parts.into_iter().all(inside) {
            return None;
        }
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::RAM_HOLE_START;
    use crate::memory::allocate;
    use crate::units::MIB;
    use proptest::prelude::*;

    fn setup() -> QueueSetup {
        let mut setup = QueueSetup::new(64);
        setup.descriptors = MIB;
        setup.available = MIB + 0x1000;
        setup.used = MIB + 0x2000;
        setup.ready = true;
        setup
    }

    #[test]
    fn a_good_queue_is_built_as_set() {
        let memory = allocate(32, false).unwrap();
        let mut setup = setup();
        setup.set_size(32);
        let queue = setup.build(&memory, true).unwrap();
        assert_eq!(
            (queue.size(), queue.desc_table(), queue.used_ring()),
            (32, MIB, MIB + 0x2000)
        );
        assert!(queue.ready() && queue.event_idx_enabled());
    }

    #[test]
    fn bad_queues_are_refused() {
        let memory = allocate(4096, false).unwrap();
        let cases: [fn(&mut QueueSetup); 8] = [
            |queue| queue.ready = false,
            |queue| queue.set_size(0),
            |queue| queue.set_size(48),
            |queue| queue.set_size(128),
            |queue| queue.set_size(0x1_0040),
            |queue| queue.descriptors += 8,
            |queue| queue.descriptors = RAM_HOLE_START - 16,
            |queue| queue.used = u64::MAX - 3,
        ];
        for (number, spoil) in cases.into_iter().enumerate() {
            let mut setup = setup();
            spoil(&mut setup);
            assert!(setup.build(&memory, false).is_none(), "case {number}");
        }
    }

    proptest! {
        #[test]
        fn what_is_built_lies_in_memory(descriptors: u64, available: u64, used: u64, size: u32) {
            let memory = allocate(32, false).unwrap();
            let mut setup = QueueSetup { ready: true, descriptors, available, used, ..setup() };
            setup.set_size(size);
            if let Some(queue) = setup.build(&memory, false) {
                prop_assert!(queue.desc_table() < 32 * MIB && queue.used_ring() < 32 * MIB);
            }
        }
    }
}

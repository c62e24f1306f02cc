//! The descriptors that hold one packet.
//!
//! The driver may cut a packet into descriptors as it likes (virtio 1.2 §2.7.4.1): Linux uses one for
//! the header and one for the payload when it sends, one for both when it receives, and one for each
//! page of a payload sent without copying. So the chain is walked once, into a fixed array, and read
//! or written as if it were contiguous.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

use super::packet::PAYLOAD_BYTES_MAX;

/// Most descriptors of one packet. Linux needs at most 19: header, payload, `MAX_SKB_FRAGS` pages.
pub(super) const PARTS_MAX: usize = 32;

/// Direction of a chain's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads the buffers: a packet from the guest.
    Readable,
    /// The device writes the buffers: room for a packet to the guest.
    Writable,
}

/// Why a chain holds no packet.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    #[error("descriptor chain has more than {PARTS_MAX} descriptors")]
    TooLong,
    #[error("descriptor chain has a descriptor that is not {0:?}")]
    Direction(Direction),
    #[error("descriptor chain of {have} bytes ends before byte {want}")]
    TooShort { have: u64, want: u64 },
    #[error("packet header names {0} bytes of payload; at most {PAYLOAD_BYTES_MAX} are allowed")]
    Payload(u32),
    #[error("descriptor chain leaves guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// A chain's buffers as one range of bytes.
#[derive(Debug)]
pub(super) struct Chain {
    parts: [(GuestAddress, u32); PARTS_MAX],
    count: usize,
    bytes: u64,
}

impl Chain {
    /// Walks the descriptors once. Whether their buffers lie in guest memory is checked when they are read or
    /// written.
    pub(super) fn collect<M>(
        descriptors: DescriptorChain<M>,
        direction: Direction,
    ) -> Result<Self, ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut chain = Self {
            parts: [(GuestAddress(0), 0); PARTS_MAX],
            count: 0,
            bytes: 0,
        };
        for descriptor in descriptors {
            if descriptor.is_write_only() != (direction == Direction::Writable) {
                return Err(ChainError::Direction(direction));
            }
            let slot = chain
                .parts
                .get_mut(chain.count)
                .ok_or(ChainError::TooLong)?;
            *slot = (descriptor.addr(), descriptor.len());
            // The sum of at most PARTS_MAX lengths, 32 bits each.
            chain.count = chain.count.saturating_add(1);
            chain.bytes = chain.bytes.saturating_add(descriptor.len().into());
        }
        Ok(chain)
    }

    /// Room of all buffers together, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies out the bytes from `offset` on.
    pub(super) fn read(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        to: &mut [u8],
    ) -> Result<(), ChainError> {
        self.walk(offset, to.len(), |range, address| {
            memory.read_slice(&mut to[range], address)
        })
    }

    /// Copies in the bytes from `offset` on.
    pub(super) fn write(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        from: &[u8],
    ) -> Result<(), ChainError> {
        self.walk(offset, from.len(), |range, address| {
            memory.write_slice(&from[range], address)
        })
    }

    /// Calls `copy` for each contiguous piece of the `len` bytes from `offset` on.
    fn walk(
        &self,
        offset: usize,
        len: usize,
        mut copy: impl FnMut(std::ops::Range<usize>, GuestAddress) -> Result<(), GuestMemoryError>,
    ) -> Result<(), ChainError> {
        let want = (offset as u64).saturating_add(len as u64);
        if want > self.bytes {
            return Err(ChainError::TooShort {
                have: self.bytes,
                want,
            });
        }
        let mut skip = offset;
        let mut done = 0;
        for (address, part_len) in &self.parts[..self.count] {
            let part_len = *part_len as usize;
            let here = part_len.saturating_sub(skip).min(len.saturating_sub(done));
            let end = done.saturating_add(here);
            if here > 0 {
                let at = address.0.checked_add(skip as u64).map(GuestAddress);
                let at = at.ok_or(GuestMemoryError::InvalidBackendAddress);
                at.and_then(|at| copy(done..end, at))
                    .map_err(ChainError::Memory)?;
            }
            done = end;
            skip = skip.saturating_sub(part_len);
        }
        Ok(())
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;

    /// `VRING_DESC_F_NEXT` and `VRING_DESC_F_WRITE`.
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
    }

    fn collect(
        memory: &GuestMemoryMmap,
        parts: &[(u64, u32, u16)],
        direction: Direction,
    ) -> Result<Chain, ChainError> {
        let queue = MockSplitQueue::new(memory, 64);
        let descriptors: Vec<_> = parts
            .iter()
            .map(|(at, len, flags)| RawDescriptor::from(Descriptor::new(*at, *len, *flags, 0)))
            .collect();
        Chain::collect(queue.build_desc_chain(&descriptors).unwrap(), direction)
    }

    #[test]
    fn a_packet_may_be_cut_anywhere() {
        let memory = memory();
        memory.write_slice(b"abcdef", GuestAddress(0x8000)).unwrap();
        memory.write_slice(b"ghij", GuestAddress(0x9000)).unwrap();
        let parts = [(0x8000, 6, 0), (0x8800, 0, NEXT), (0x9000, 4, NEXT)];
        let chain = collect(&memory, &parts, Direction::Readable).unwrap();
        let mut bytes = [0; 5];
        chain.read(&memory, 4, &mut bytes).unwrap();
        assert_eq!(&bytes, b"efghi");
        let err = chain.read(&memory, 6, &mut bytes).unwrap_err();
        assert!(
            matches!(err, ChainError::TooShort { have: 10, want: 11 }),
            "{err}"
        );
    }

    #[test]
    fn writes_across_descriptors() {
        let memory = memory();
        let parts = [(0x8000, 2, WRITE), (0x9000, 8, WRITE)];
        let chain = collect(&memory, &parts, Direction::Writable).unwrap();
        assert_eq!(chain.bytes(), 10);
        chain.write(&memory, 0, b"hello").unwrap();
        let mut bytes = [0; 3];
        memory.read_slice(&mut bytes, GuestAddress(0x9000)).unwrap();
        assert_eq!(&bytes, b"llo");
    }

    #[test]
    fn refuses_what_is_not_a_chain_of_ours() {
        let memory = memory();
        let mixed = [(0x8000, 44, 0), (0x9000, 44, WRITE)];
        let err = collect(&memory, &mixed, Direction::Readable).unwrap_err();
        assert!(matches!(err, ChainError::Direction(_)), "{err}");
        let long = [(0x8000, 1, 0); PARTS_MAX + 1];
        let err = collect(&memory, &long, Direction::Readable).unwrap_err();
        assert!(matches!(err, ChainError::TooLong), "{err}");
        for outside in [0x10_0000, u64::MAX - 4] {
            let chain = collect(&memory, &[(outside, 64, 0)], Direction::Readable).unwrap();
            let err = chain.read(&memory, 8, &mut [0; 8]).unwrap_err();
            assert!(matches!(err, ChainError::Memory(_)), "{err}");
        }
    }
}

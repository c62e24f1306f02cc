//! What holds for every buffer that a guest may offer.

use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{HEADER_BYTES, Header};
use super::*;

/// `VRING_DESC_F_NEXT` with `VRING_DESC_F_WRITE`.
const WRITE_NEXT: u16 = 3;

proptest! {
    /// There is room for the header and a byte at least, or no packet is made; all of one fits.
    #[test]
    fn a_packet_fits_the_buffer_that_was_offered(
        parts in proptest::collection::vec(0_u32..100, 1..6),
        have in 0_usize..200,
    ) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let queue = MockSplitQueue::new(&memory, 16);
        let descriptors: Vec<_> = (0_u64..).zip(&parts)
            .map(|(index, len)| RawDescriptor::from(Descriptor::new(0x8000 + 0x100 * index, *len, WRITE_NEXT, 0)))
            .collect();
        let chain = queue.build_desc_chain(&descriptors).unwrap();
        let offered = parts.iter().map(|len| *len as usize).sum::<usize>();
        let mut payload = vec![7; PAYLOAD_BYTES_MAX];
        let mut room = None;
        let written = write_packet(&memory, chain, &mut payload, |payload| {
            room = Some(payload.len());
            let len = u32::try_from(have.min(payload.len())).unwrap();
            Some(Header { len, ..Header::default() })
        });
        prop_assert_eq!(room, (offered > HEADER_BYTES).then(|| offered - HEADER_BYTES));
        match written {
            Ok(bytes) => {
                prop_assert_eq!(bytes as usize, HEADER_BYTES + have.min(offered - HEADER_BYTES));
                let used: u8 = memory.read_obj(GuestAddress(0x8000 + 0x100 * parts.len() as u64)).unwrap();
                prop_assert_eq!(used, 0, "behind the buffer");
            }
            Err(error) => prop_assert!(offered <= HEADER_BYTES, "{}", error),
        }
    }
}

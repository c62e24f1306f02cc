//! Packets on their way between the rings' buffers and the muxer.

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use crate::virtio::vsock::chain::{Chain, ChainError, Direction};
use crate::virtio::vsock::packet::{HEADER_BYTES, Header};

/// Copies a packet out of guest memory, its payload to the front of `payload`.
pub(super) fn read_packet(
    memory: &GuestMemoryMmap,
    descriptors: DescriptorChain<&GuestMemoryMmap>,
    payload: &mut [u8],
) -> Result<Header, ChainError> {
    let chain = Chain::collect(descriptors, Direction::Readable)?;
    let mut bytes = [0; HEADER_BYTES];
    chain.read(memory, 0, &mut bytes)?;
    let header = Header::decode(&bytes);
    let room = payload.get_mut(..header.len as usize);
    let room = room.ok_or(ChainError::Payload(header.len))?;
    chain.read(memory, HEADER_BYTES, room)?;
    Ok(header)
}

/// Least room for a packet: a header and a byte of payload.
const PACKET_BYTES_MIN: u64 = HEADER_BYTES as u64 + 1;

/// Copies a packet into guest memory, as much of one as fits; returns the bytes written.
pub(super) fn write_packet(
    memory: &GuestMemoryMmap,
    descriptors: DescriptorChain<&GuestMemoryMmap>,
    payload: &mut [u8],
    next_packet: impl FnOnce(&mut [u8]) -> Option<Header>,
) -> Result<u32, ChainError> {
    let chain = Chain::collect(descriptors, Direction::Writable)?;
    let have = chain.bytes();
    // Room for one byte of payload at least, or no data would ever be sent.
    let room = have
        .checked_sub(HEADER_BYTES as u64)
        .filter(|room| *room > 0)
        .ok_or(ChainError::TooShort {
            have,
            want: PACKET_BYTES_MIN,
        })?;
    let room = usize::try_from(room)
        .unwrap_or(payload.len())
        .min(payload.len());
    let Some(header) = next_packet(&mut payload[..room]) else {
        return Ok(0);
    };
    chain.write(memory, HEADER_BYTES, &payload[..header.len as usize])?;
    chain.write(memory, 0, &header.encode())?;
    let written = HEADER_BYTES.saturating_add(header.len as usize);
    Ok(u32::try_from(written).unwrap_or(u32::MAX))
}

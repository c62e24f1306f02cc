//! Chains of any descriptors, indirect ones too.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

use std::array;

use arbitrary::{Result, Unstructured};
use virtio_queue::QueueOwnedT;

use super::*;
use crate::virtio::fuzz::{GuestRing, describe, near};

const MEMORY_BYTES: u64 = 0x1_0000;
const RING: u64 = 0x1000;
/// Indirect tables and buffers.
const INDIRECT: u64 = 0x4000;
const BUFFERS: u64 = 0x6000;
const EDGES: [u64; 6] = [INDIRECT, BUFFERS, 0x8000, RING, MEMORY_BYTES, u64::MAX];

/// A chain is taken exactly when it has at most 32 descriptors, all of one direction; what is read from
/// it are exactly the bytes asked for, what is written goes exactly where they were, and nowhere else.
pub fn chain(input: &[u8]) {
    let _used_up = walk(&mut Unstructured::new(input));
}

fn walk(u: &mut Unstructured<'_>) -> Result<()> {
    let len = usize::try_from(MEMORY_BYTES).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap();
    let pattern: [u8; 251] = array::from_fn(|at| u8::try_from(at).unwrap());
    let from = usize::try_from(BUFFERS).unwrap();
    for at in (from..len - pattern.len()).step_by(pattern.len()) {
        memory
            .write_slice(&pattern, GuestAddress(at as u64))
            .unwrap();
    }
    let mut ring = GuestRing::new(&memory, RING, 64);
    for index in 0..u.int_in_range(1..=40_u16)? {
        let (address, len, flags, next) = descriptor(u, index)?;
        ring.describe(index, address, len, flags, next);
    }
    for index in 0..u.int_in_range(0..=40_u16)? {
        let (address, len, flags, next) = descriptor(u, index)?;
        describe(
            &memory,
            INDIRECT + 16 * u64::from(index),
            address,
            len,
            flags,
            next,
        );
    }
    ring.offer(u.int_in_range(0..=3)?);
    let mut queue = ring.queue();
    let Some(descriptors) = queue.iter(&memory).unwrap().next() else {
        return Ok(());
    };
    let direction = *u.choose(&[Direction::Readable, Direction::Writable])?;
    let parts = descriptors.clone().take(PARTS_MAX + 1);
    let parts = parts.map(|part| (part.addr().0, part.len(), part.is_write_only()));
    let parts: Vec<_> = parts.collect();
    let fits = parts.len() <= PARTS_MAX;
    let one_way = parts
        .iter()
        .all(|part| part.2 == (direction == Direction::Writable));
    let collected = Chain::collect(descriptors, direction);
    assert_eq!(collected.is_ok(), fits && one_way, "{parts:?}");
    if let Ok(chain) = collected {
        let bytes: u64 = parts.iter().map(|part| u64::from(part.1)).sum();
        assert_eq!(chain.bytes(), bytes);
        let offset = usize::from(u.arbitrary::<u16>()?) >> u.int_in_range(0..=16)?;
        copy(u, &memory, &chain, &parts, offset)?;
    }
    Ok(())
}

fn descriptor(u: &mut Unstructured<'_>, index: u16) -> Result<(u64, u32, u16, u16)> {
    let address = near(u, &EDGES)?;
    let len = if u.ratio(1, 16)? {
        u.arbitrary()?
    } else {
        u.arbitrary::<u32>()? >> u.int_in_range(20..=31)?
    };
    // Most chains go on, the one way or the other, with the next descriptor.
    let flags = if u.ratio(1, 8)? {
        u.arbitrary()?
    } else {
        1 | u16::from(u.ratio(1, 16)?) << 1
    };
    let next = if u.ratio(1, 8)? {
        u.arbitrary()?
    } else {
        index + 1
    };
    Ok((address, len, flags, next))
}

/// Where the bytes of the chain lie, from `offset` on; `None` for a byte outside of guest memory.
fn places(parts: &[(u64, u32, bool)], offset: usize, len: usize) -> Option<Vec<usize>> {
    let all = parts.iter().flat_map(|(address, len, _)| {
        (0..u64::from(*len)).map(move |at| address.checked_add(at).filter(|at| *at < MEMORY_BYTES))
    });
    let places = all.skip(offset).take(len);
    places
        .map(|at| at.and_then(|at| usize::try_from(at).ok()))
        .collect()
}

fn copy(
    u: &mut Unstructured<'_>,
    memory: &GuestMemoryMmap,
    chain: &Chain,
    parts: &[(u64, u32, bool)],
    offset: usize,
) -> Result<()> {
    let len = usize::from(u.arbitrary::<u16>()?) >> u.int_in_range(0..=16)?;
    let enough = (offset + len) as u64 <= chain.bytes();
    let places = if enough {
        places(parts, offset, len)
    } else {
        None
    };
    let before = snapshot(memory);

    let mut read = vec![0; len];
    let result = chain.read(memory, offset, &mut read);
    assert_eq!(result.is_ok(), places.is_some(), "{result:?}");
    if let Some(places) = &places {
        assert!(
            read.iter()
                .zip(places)
                .all(|(byte, at)| *byte == before[*at]),
            "other bytes read"
        );
    }
    assert!(snapshot(memory) == before, "reading writes");

    let bytes: Vec<u8> = (0..len)
        .map(|at| u8::try_from(at % 241).unwrap() ^ 0xaa)
        .collect();
    let result = chain.write(memory, offset, &bytes);
    assert_eq!(result.is_ok(), places.is_some(), "{result:?}");
    if let Some(places) = places {
        let mut model = before;
        for (byte, at) in bytes.iter().zip(places) {
            model[at] = *byte;
        }
        assert!(snapshot(memory) == model, "other bytes written");
    }
    Ok(())
}

fn snapshot(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(MEMORY_BYTES).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

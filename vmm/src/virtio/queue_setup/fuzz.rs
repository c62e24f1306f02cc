//! One queue, set up in any way.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

use arbitrary::{Result, Unstructured};

use super::*;
use crate::virtio::fuzz::near;

/// Guest memory with a hole, as every machine has it.
const REGIONS: [(u64, u64); 2] = [(0, 0x1_0000), (0x10_0000, 0x2000)];
const EDGES: [u64; 6] = [0, 0x8000, 0x1_0000, 0x10_0000, 0x10_2000, u64::MAX];
const SIZE_MAX: u16 = 128;

/// A queue is built exactly when the driver called it ready, its size is a power of two that the device
/// has, and its three parts are aligned and lie in one region of guest memory each.
pub fn queue_setup(input: &[u8]) {
    let _used_up = build(&mut Unstructured::new(input));
}

fn build(u: &mut Unstructured<'_>) -> Result<()> {
    let regions =
        REGIONS.map(|(start, bytes)| (GuestAddress(start), usize::try_from(bytes).unwrap()));
    let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
    let mut setup = QueueSetup::new(SIZE_MAX);
    setup.descriptors = near(u, &EDGES)?;
    setup.available = near(u, &EDGES)?;
    setup.used = near(u, &EDGES)?;
    if u.arbitrary()? {
        setup.set_size(if u.arbitrary()? {
            1 << u.int_in_range(0..=31)?
        } else {
            u.arbitrary()?
        });
    }
    setup.set_ready(u.arbitrary()?);
    let event_idx = u.arbitrary()?;

    let entries = u128::from(setup.size);
    let inside = |start: u64, bytes: u128, align: u64| {
        let end = u128::from(start) + bytes;
        let region =
            |(from, len): (u64, u64)| start >= from && end <= u128::from(from) + u128::from(len);
        start.is_multiple_of(align) && REGIONS.into_iter().any(region)
    };
    let usable = setup.ready
        && setup.size.is_power_of_two()
        && setup.size <= SIZE_MAX
        && inside(setup.descriptors, 16 * entries, 16)
        && inside(setup.available, 6 + 2 * entries, 2)
        && inside(setup.used, 6 + 8 * entries, 4);
    let queue = setup.build(&memory, event_idx);
    assert_eq!(queue.is_some(), usable, "{setup:?}");
    if let Some(queue) = queue {
        // Not `is_valid`: virtio-queue 0.17 takes a ring that ends with its region for one beyond it.
        assert_eq!((queue.ready(), queue.size()), (true, setup.size));
        assert_eq!(queue.event_idx_enabled(), event_idx);
    }
    Ok(())
}

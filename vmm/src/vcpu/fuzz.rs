//! Exits as KVM reports them, with any address, port and data.

use arbitrary::{Result, Unstructured};
use wasmvm_protocol::slot::{SLOT_ADDRESS, SLOT_STRIDE_BYTES, SLOTS_MAX};

use super::*;
use crate::arch::x86_64::serial::{PORT_FIRST, PORT_LAST};
use crate::arch::{MMIO_DEVICE_BYTES, MMIO_START};

/// An access to the slots reads as ones and may not write; one to where nothing is ends the guest with the
/// address; ports never end it, and what is read of one without a device are ones.
pub fn exits(input: &[u8]) {
    let _used_up = handle(&mut Unstructured::new(input));
}

fn handle(u: &mut Unstructured<'_>) -> Result<()> {
    let bus = SharedBus::default();
    let mut serial = Serial::new(Console::new(false));
    while !u.is_empty() {
        let mut data = u.arbitrary::<[u8; 8]>()?;
        let width = u.int_in_range(0..=8)?;
        let data = &mut data[..width];
        if u.arbitrary()? {
            let port = if u.arbitrary()? {
                u.int_in_range(PORT_FIRST - 1..=PORT_LAST + 1)?
            } else {
                u.arbitrary()?
            };
            let ours = (PORT_FIRST..=PORT_LAST).contains(&port);
            assert_eq!(
                handle_exit(VcpuExit::IoOut(port, data), &bus, &mut serial),
                None
            );
            assert_eq!(
                handle_exit(VcpuExit::IoIn(port, data), &bus, &mut serial),
                None
            );
            let rest = if ours {
                data.get(1..).unwrap_or_default()
            } else {
                data
            };
            assert!(rest.iter().all(|byte| *byte == 0xff), "port {port:#x}");
        } else {
            let address = crate::virtio::fuzz::near(u, &EDGES)?;
            let slot = (SLOT_ADDRESS..SLOTS_END).contains(&address);
            let end = handle_exit(VcpuExit::MmioRead(address, data), &bus, &mut serial);
            assert_eq!(end.is_none(), slot, "read {address:#x}: {end:?}");
            assert!(!slot || data.iter().all(|byte| *byte == 0xff));
            match handle_exit(VcpuExit::MmioWrite(address, data), &bus, &mut serial) {
                Some(GuestEnd::SlotWrite { address: told }) => assert!(slot && told == address),
                Some(GuestEnd::Nowhere { address: told, .. }) => assert!(!slot && told == address),
                other => panic!("write {address:#x}: {other:?}"),
            }
        }
    }
    Ok(())
}

const SLOTS_END: u64 = SLOT_ADDRESS + SLOTS_MAX as u64 * SLOT_STRIDE_BYTES;
const EDGES: [u64; 6] = [
    0,
    MMIO_START,
    MMIO_START + 2 * MMIO_DEVICE_BYTES,
    SLOT_ADDRESS,
    SLOTS_END,
    u64::MAX,
];

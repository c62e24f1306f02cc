//! The transport under any sequence of accesses.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Result, Unstructured};
use vm_memory::GuestAddress;

use super::*;
use crate::virtio::fuzz::event;
use crate::virtio::queue_setup::QueueSetup;

const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 3;
const SIZES: [u16; 2] = [64, 8];
/// Registers that do something.
const REGISTERS: [u32; 20] = [
    register::VIRTIO_MMIO_DEVICE_FEATURES,
    register::VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    register::VIRTIO_MMIO_DRIVER_FEATURES,
    register::VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    register::VIRTIO_MMIO_QUEUE_SEL,
    register::VIRTIO_MMIO_QUEUE_NUM_MAX,
    register::VIRTIO_MMIO_QUEUE_NUM,
    register::VIRTIO_MMIO_QUEUE_READY,
    register::VIRTIO_MMIO_QUEUE_NOTIFY,
    register::VIRTIO_MMIO_INTERRUPT_STATUS,
    register::VIRTIO_MMIO_INTERRUPT_ACK,
    register::VIRTIO_MMIO_STATUS,
    register::VIRTIO_MMIO_QUEUE_DESC_LOW,
    register::VIRTIO_MMIO_QUEUE_DESC_HIGH,
    register::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    register::VIRTIO_MMIO_QUEUE_USED_LOW,
    register::VIRTIO_MMIO_QUEUE_USED_HIGH,
    register::VIRTIO_MMIO_SHM_LEN_LOW,
    register::VIRTIO_MMIO_CONFIG,
];
/// What a driver that means well writes, one after the other.
const HONEST: [(u32, u32); 16] = [
    (register::VIRTIO_MMIO_STATUS, ACKNOWLEDGED),
    (register::VIRTIO_MMIO_STATUS, DRIVEN),
    (register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
    (register::VIRTIO_MMIO_DRIVER_FEATURES, 1),
    (register::VIRTIO_MMIO_STATUS, NEGOTIATED),
    (register::VIRTIO_MMIO_QUEUE_SEL, 0),
    (register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
    (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000),
    (register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000),
    (register::VIRTIO_MMIO_QUEUE_READY, 1),
    (register::VIRTIO_MMIO_QUEUE_SEL, 1),
    (register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x4000),
    (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x5000),
    (register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x6000),
    (register::VIRTIO_MMIO_QUEUE_READY, 1),
    (register::VIRTIO_MMIO_STATUS, READY),
];

struct Device {
    works: bool,
    activations: Arc<AtomicU32>,
}

impl VirtioDevice for Device {
    fn device_id(&self) -> u32 {
        7
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        assert!(offset <= u64::MAX - u64::from(register::VIRTIO_MMIO_CONFIG));
        data.fill(1);
    }

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), ActivateError> {
        self.activations.fetch_add(1, Ordering::Relaxed);
        assert_eq!(activation.queues.len(), SIZES.len());
        assert_eq!(activation.features & !OFFERED, 0, "features not offered");
        let device_id = self.device_id();
        if self.works {
            Ok(())
        } else {
            Err(ActivateError::Worker { device_id })
        }
    }
}

/// The device is activated at most once; the queues change only between `FEATURES_OK` and `DRIVER_OK`,
/// the accepted features only between `DRIVER` and `FEATURES_OK` (a reset clears both); the status moves
/// only along the diagram.
pub fn mmio(input: &[u8]) {
    let _used_up = drive(&mut Unstructured::new(input));
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let activations = Arc::new(AtomicU32::new(0));
    let device = Device {
        works: u.arbitrary()?,
        activations: Arc::clone(&activations),
    };
    let kicks = vec![event(), event()];
    let interrupt = Interrupt::new(event());
    let mut transport = MmioTransport::new(Box::new(device), memory, kicks, interrupt);
    let mut honest = HONEST.iter().cycle();
    while !u.is_empty() {
        let before = State::of(&transport);
        match u.int_in_range(0..=3)? {
            0 => {
                let (at, value) = honest.next().unwrap();
                let _refused = transport.write((*at).into(), &value.to_le_bytes());
            }
            1 => {
                let value = if u.arbitrary()? {
                    u32::from(u.arbitrary::<u8>()?)
                } else {
                    u.arbitrary()?
                };
                let at = u64::from(*u.choose(&REGISTERS)?);
                let _refused = transport.write(at, &value.to_le_bytes());
            }
            2 => {
                let (at, width) = (u.arbitrary()?, u.int_in_range(0..=8)?);
                let _refused = transport.write(at, &u.arbitrary::<[u8; 8]>()?[..width]);
            }
            _ => read(u, &mut transport)?,
        }
        before.may_become(&State::of(&transport));
        assert!(activations.load(Ordering::Relaxed) <= 1, "activated twice");
    }
    Ok(())
}

fn read(u: &mut Unstructured<'_>, transport: &mut MmioTransport) -> Result<()> {
    let at = if u.arbitrary()? {
        u64::from(*u.choose(&REGISTERS)?)
    } else {
        u.arbitrary()?
    };
    let mut data = [0xff; 8];
    let width = u.int_in_range(0..=8)?;
    transport.read(at, &mut data[..width]);
    assert!(data[width..].iter().all(|byte| *byte == 0xff));
    Ok(())
}

/// All that a driver can change.
struct State {
    status: u32,
    features: u64,
    queues: Vec<QueueSetup>,
    activated: bool,
}

impl State {
    fn of(transport: &MmioTransport) -> Self {
        Self {
            status: transport.state.status,
            features: transport.state.driver_features,
            queues: transport.state.queues.clone(),
            activated: transport.state.activated,
        }
    }

    fn may_become(&self, after: &Self) {
        let reset = after.status == 0 && !self.activated;
        let moves = match (self.status, after.status) {
            (from, to) if from == to => true,
            (0, ACKNOWLEDGED) | (ACKNOWLEDGED, DRIVEN) => true,
            (DRIVEN, NEGOTIATED) => after.features & !OFFERED == 0 && after.features >> 32 & 1 == 1,
            (NEGOTIATED, READY) => after.activated,
            // A device that does not work, a driver that gives up, a reset of what is active.
            (NEGOTIATED, to) if to == NEGOTIATED | NEEDS_RESET => true,
            (from, to) if to == from | FAILED => true,
            (_, NEEDS_RESET) => self.activated,
            _ => reset,
        };
        assert!(moves, "status {:#x} to {:#x}", self.status, after.status);
        let same = self.queues == after.queues;
        assert!(same || reset || self.status == NEGOTIATED, "queues changed");
        let same = self.features == after.features;
        assert!(same || reset || self.status == DRIVEN, "features changed");
        assert!(after.activated || !self.activated);
    }
}

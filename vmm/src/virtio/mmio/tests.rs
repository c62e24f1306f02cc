//! The transport as a driver sees it, with a device that only notes what it gets.

use super::state::set_half;
use super::*;
use std::sync::{Arc, Mutex};

use super::super::{ActivateError, INTERRUPT_USED_RING};
use crate::memory::allocate;
use crate::units::MIB;
use proptest::prelude::*;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<Activation>>>);

struct TestDevice {
    noted: Noted,
    fails: bool,
}

impl VirtioDevice for TestDevice {
    fn device_id(&self) -> u32 {
        19
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 128]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap_or(0xff));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.fails {
            return Err(ActivateError::Queues {
                device_id: 19,
                queues: 0,
            });
        }
        self.noted.0.lock().unwrap().push(activation);
        Ok(())
    }
}

fn transport(fails: bool) -> (MmioTransport, Noted) {
    let noted = Noted::default();
    let device = Box::new(TestDevice {
        noted: noted.clone(),
        fails,
    });
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Interrupt::new(event());
    let memory = allocate(32, false).unwrap();
    (
        MmioTransport::new(device, memory, vec![event(), event()], interrupt),
        noted,
    )
}

fn get(transport: &mut MmioTransport, offset: u32) -> u32 {
    let mut data = [0; 4];
    transport.read(offset.into(), &mut data);
    u32::from_le_bytes(data)
}

fn set(transport: &mut MmioTransport, offset: u32, value: u32) {
    transport
        .write(offset.into(), &value.to_le_bytes())
        .unwrap();
}

/// What the last step of a driver comes to.
fn set_ready(transport: &mut MmioTransport) -> Result<(), ActivateError> {
    let status = register::VIRTIO_MMIO_STATUS;
    transport.write(status.into(), &READY.to_le_bytes())
}

fn set_features(transport: &mut MmioTransport, features: u64) {
    for page in 0..2 {
        set(transport, register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
        set(
            transport,
            register::VIRTIO_MMIO_DRIVER_FEATURES,
            half(features, page),
        );
    }
}

fn set_queue(transport: &mut MmioTransport, index: u32, descriptors: u32) {
    set(transport, register::VIRTIO_MMIO_QUEUE_SEL, index);
    set(transport, register::VIRTIO_MMIO_QUEUE_NUM, 64);
    set(transport, register::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors);
    set(
        transport,
        register::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        descriptors + 0x1000,
    );
    set(
        transport,
        register::VIRTIO_MMIO_QUEUE_USED_LOW,
        descriptors + 0x2000,
    );
    set(transport, register::VIRTIO_MMIO_QUEUE_READY, 1);
}

fn drive(transport: &mut MmioTransport, features: u64) -> Result<(), ActivateError> {
    for status in [0, ACKNOWLEDGED, DRIVEN] {
        set(transport, register::VIRTIO_MMIO_STATUS, status);
    }
    set_features(transport, features);
    set(transport, register::VIRTIO_MMIO_STATUS, NEGOTIATED);
    set_queue(transport, 0, 0x10_0000);
    set_queue(transport, 1, 0x11_0000);
    set_ready(transport)
}

#[test]
fn a_driver_activates_the_device() {
    let (mut transport, noted) = transport(false);
    drive(&mut transport, FEATURES).unwrap();
    assert_eq!(get(&mut transport, register::VIRTIO_MMIO_STATUS), READY);
    let noted = noted.0.lock().unwrap();
    let activation = noted.first().unwrap();
    assert_eq!(
        (activation.features, activation.queues.len()),
        (FEATURES, 2)
    );
    assert_eq!(activation.queues[1].queue.desc_table(), MIB + 0x1_0000);
    assert!(activation.queues[0].queue.event_idx_enabled());
}

#[test]
fn identification_and_config_read_as_specified() {
    let (mut transport, _noted) = transport(false);
    assert_eq!(get(&mut transport, 0x000).to_le_bytes(), *b"virt");
    assert_eq!(
        (get(&mut transport, 0x004), get(&mut transport, 0x008)),
        (2, 19)
    );
    set(&mut transport, 0x014, 1);
    assert_eq!(get(&mut transport, 0x010), 1);
    set(&mut transport, 0x014, 2);
    assert_eq!(get(&mut transport, 0x010), 0);
    set(&mut transport, 0x030, 1);
    assert_eq!(get(&mut transport, 0x034), 128);
    set(&mut transport, 0x030, 9);
    assert_eq!(get(&mut transport, 0x034), 0);
    assert_eq!(get(&mut transport, 0x0b0), u32::MAX);
    let mut byte = [0];
    transport.read(0x107, &mut byte);
    assert_eq!(byte, [7]);
    transport.read(0x000, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX, FEATURES | 1] {
        let (mut transport, noted) = transport(false);
        drive(&mut transport, features).unwrap();
        assert_eq!(get(&mut transport, register::VIRTIO_MMIO_STATUS), DRIVEN);
        assert!(noted.0.lock().unwrap().is_empty());
    }
}

#[test]
fn a_queue_outside_memory_is_an_error() {
    let (mut transport, noted) = transport(false);
    for status in [ACKNOWLEDGED, DRIVEN] {
        set(&mut transport, register::VIRTIO_MMIO_STATUS, status);
    }
    set_features(&mut transport, FEATURES);
    set(&mut transport, register::VIRTIO_MMIO_STATUS, NEGOTIATED);
    set_queue(&mut transport, 0, 0x10_0000);
    set_queue(&mut transport, 1, 0xd000_0000);
    let refused = set_ready(&mut transport);
    assert!(matches!(
        refused,
        Err(ActivateError::QueueSetup { device_id: 19 })
    ));
    assert_eq!(
        get(&mut transport, register::VIRTIO_MMIO_STATUS) & NEEDS_RESET,
        NEEDS_RESET
    );
    assert!(noted.0.lock().unwrap().is_empty());
}

#[test]
fn queues_are_frozen_and_a_reset_is_final() {
    let (mut transport, noted) = transport(false);
    drive(&mut transport, FEATURES).unwrap();
    set_queue(&mut transport, 0, 0x20_0000);
    assert_eq!(transport.state.queues[0].descriptors, 0x10_0000);
    set(&mut transport, register::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(
        get(&mut transport, register::VIRTIO_MMIO_STATUS),
        NEEDS_RESET
    );
    drive(&mut transport, FEATURES).unwrap();
    assert_eq!(
        get(&mut transport, register::VIRTIO_MMIO_STATUS),
        NEEDS_RESET
    );
    assert_eq!(noted.0.lock().unwrap().len(), 1);
}

#[test]
fn a_failing_device_is_an_error() {
    let (mut transport, _noted) = transport(true);
    let failed = drive(&mut transport, FEATURES);
    assert!(matches!(failed, Err(ActivateError::Queues { .. })));
    let status = get(&mut transport, register::VIRTIO_MMIO_STATUS);
    assert_eq!(status, NEGOTIATED | NEEDS_RESET);
}

#[test]
fn an_interrupt_shows_until_acknowledged() {
    let (mut transport, noted) = transport(false);
    drive(&mut transport, FEATURES).unwrap();
    noted.0.lock().unwrap()[0].interrupt.used_ring().unwrap();
    assert_eq!(get(&mut transport, 0x060), INTERRUPT_USED_RING);
    set(&mut transport, 0x064, INTERRUPT_USED_RING);
    assert_eq!(get(&mut transport, 0x060), 0);
}

proptest! {
    /// Any register traffic leaves at most one activation, with queues inside memory.
    #[test]
    fn any_traffic_is_survived(
        writes in proptest::collection::vec(
            (0u64..0x110, prop_oneof![0u32..16, Just(0x10_0000u32), any::<u32>()]),
            0..200,
        ),
    ) {
        let (mut transport, noted) = transport(false);
        for (offset, value) in writes {
            let _ended = transport.write(offset & !3, &value.to_le_bytes());
            let mut data = [0; 4];
            transport.read(offset, &mut data);
        }
        prop_assert!(noted.0.lock().unwrap().len() <= 1);
    }
}

proptest! {
    /// A 64-bit register is its two halves; other pages hold nothing.
    #[test]
    fn halves_are_read_as_they_were_set(value: u64, low: u32, high: u32, page in 2_u32..) {
        let mut target = value;
        set_half(&mut target, page, low);
        prop_assert_eq!((target, half(target, page)), (value, 0));
        set_half(&mut target, 0, low);
        prop_assert_eq!((half(target, 0), half(target, 1)), (low, half(value, 1)));
        set_half(&mut target, 1, high);
        prop_assert_eq!(target, u64::from(high) << 32 | u64::from(low));
        prop_assert!((0..64).all(|bit| has(target, bit) == (target >> bit & 1 == 1)));
    }
}

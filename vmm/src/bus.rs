//! Dispatch of guest-physical addresses that no memory slot holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wasmvm_protocol::inspect::{Inspect, Node};
use wasmvm_protocol::slot::{SLOT_ADDRESS, SLOT_STRIDE_BYTES, SLOTS_MAX};

use crate::arch::{MMIO_DEVICE_BYTES, MMIO_START};
use crate::virtio::ActivateError;
use crate::virtio::mmio::MmioTransport;

/// Kind of an address at which no device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDevice {
    /// The address is in the window of the read-only slots.
    Slot,
    /// The address belongs to no slot and no device.
    Nowhere,
}

/// Why a write ends the guest.
#[derive(Debug)]
pub enum WriteError {
    /// No device answers at the address.
    NoDevice(NoDevice),
    /// The write set a device's `DRIVER_OK`, and the device did not start.
    Activate(ActivateError),
}

/// The register windows of the devices, one after the other from [`MMIO_START`].
#[derive(Debug, Default)]
pub struct MmioBus {
    devices: Vec<MmioTransport>,
}

/// A bus that the vCPU's thread uses, and that other threads look at. Clones are the same bus.
#[derive(Clone, Debug, Default)]
pub struct SharedBus(Arc<Mutex<MmioBus>>);

impl SharedBus {
    /// The bus, for one access of the guest or one look: nobody waits for anything meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, MmioBus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<MmioBus> for SharedBus {
    fn from(bus: MmioBus) -> Self {
        Self(Arc::new(Mutex::new(bus)))
    }
}

/// The devices by their names.
impl Inspect for SharedBus {
    fn inspect(&self) -> Node {
        let bus = self.lock();
        let devices = bus.devices.iter();
        devices.fold(Node::new(), |node, device| {
            node.with(device.name(), device.inspect())
        })
    }
}

impl MmioBus {
    /// A bus on which device `i` answers at [`crate::arch::mmio_address`]`(i)`.
    #[must_use]
    pub fn new(devices: Vec<MmioTransport>) -> Self {
        Self { devices }
    }

    /// Carries out the guest's read.
    ///
    /// # Errors
    /// [`NoDevice`].
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), NoDevice> {
        let (device, offset) = self.find(address)?;
        device.read(offset, data);
        Ok(())
    }

    /// Carries out the guest's write.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), WriteError> {
        let (device, offset) = self.find(address).map_err(WriteError::NoDevice)?;
        device.write(offset, data).map_err(WriteError::Activate)
    }

    fn find(&mut self, address: u64) -> Result<(&mut MmioTransport, u64), NoDevice> {
        let slots_end = SLOT_ADDRESS + u64::from(SLOTS_MAX) * SLOT_STRIDE_BYTES;
        if (SLOT_ADDRESS..slots_end).contains(&address) {
            return Err(NoDevice::Slot);
        }
        let offset = address.checked_sub(MMIO_START).ok_or(NoDevice::Nowhere)?;
        let index = usize::try_from(offset / MMIO_DEVICE_BYTES).map_err(|_| NoDevice::Nowhere)?;
        let device = self.devices.get_mut(index).ok_or(NoDevice::Nowhere)?;
        Ok((device, offset % MMIO_DEVICE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_a_device_are_told_apart() {
        let mut bus = MmioBus::default();
        let mut data = [0; 4];
        assert_eq!(bus.read(MMIO_START, &mut data), Err(NoDevice::Nowhere));
        assert_eq!(bus.read(0, &mut data), Err(NoDevice::Nowhere));
        for (address, meant) in [
            (SLOT_ADDRESS, NoDevice::Slot),
            (u64::MAX, NoDevice::Nowhere),
        ] {
            let refused = bus.write(address, &data);
            assert!(matches!(refused, Err(WriteError::NoDevice(found)) if found == meant));
        }
    }

    proptest::proptest! {
        /// Every address is a device's, a slot's or nobody's, and only one of the three.
        #[test]
        fn every_address_has_one_answer(address: u64, near: u16) {
            let memory = vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
            let device = || {
                let event = || vmm_sys_util::eventfd::EventFd::new(0).unwrap();
                MmioTransport::new(Box::new(Nothing), memory.clone(), Vec::new(), crate::virtio::Interrupt::new(event()))
            };
            let mut bus = MmioBus::new(vec![device(), device()]);
            let devices_end = MMIO_START + 2 * MMIO_DEVICE_BYTES;
            let slots_end = SLOT_ADDRESS + u64::from(SLOTS_MAX) * SLOT_STRIDE_BYTES;
            for address in [address, MMIO_START.wrapping_add_signed(i64::from(near) - 0x8000), SLOT_ADDRESS.wrapping_sub(1), slots_end] {
                let device = (MMIO_START..devices_end).contains(&address);
                let slot = (SLOT_ADDRESS..slots_end).contains(&address);
                proptest::prop_assert!(!(device && slot));
                match bus.find(address) {
                    Ok((_, offset)) => proptest::prop_assert!(device && offset == (address - MMIO_START) % MMIO_DEVICE_BYTES),
                    Err(NoDevice::Slot) => proptest::prop_assert!(slot),
                    Err(NoDevice::Nowhere) => proptest::prop_assert!(!device && !slot),
                }
            }
        }
    }

    struct Nothing;

    impl crate::virtio::VirtioDevice for Nothing {
        fn device_id(&self) -> u32 {
            0
        }

        fn features(&self) -> u64 {
            0
        }

        fn queue_sizes(&self) -> &[u16] {
            &[]
        }

        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

        fn activate(&mut self, _: crate::virtio::Activation) -> Result<(), ActivateError> {
            Ok(())
        }
    }
}

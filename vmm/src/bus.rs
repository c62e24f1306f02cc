//! Dispatch of guest-physical addresses that no memory slot holds.

use wasmvm_protocol::slot::{SLOT_ADDRESS, SLOT_STRIDE_BYTES, SLOTS_MAX};

use crate::layout::{MMIO_DEVICE_BYTES, MMIO_START};
use crate::virtio::ActivateError;
use crate::virtio::mmio::MmioTransport;

/// Where an access went that no device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDevice {
    /// Into the window of the read-only slots.
    Slot,
    /// Nowhere that exists.
    Nowhere,
}

/// Why a write is the guest's end.
#[derive(Debug)]
pub enum WriteError {
    /// Nothing takes it.
    NoDevice(NoDevice),
    /// A device did not start by it.
    Activate(ActivateError),
}

/// The register windows of the devices, one after the other from [`MMIO_START`].
#[derive(Debug, Default)]
pub struct MmioBus {
    devices: Vec<MmioTransport>,
}

impl MmioBus {
    /// Device `i` answers at [`crate::layout::mmio_address`]`(i)`.
    #[must_use]
    pub fn new(devices: Vec<MmioTransport>) -> Self {
        Self { devices }
    }

    /// The guest reads.
    ///
    /// # Errors
    /// [`NoDevice`].
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), NoDevice> {
        let (device, offset) = self.find(address)?;
        device.read(offset, data);
        Ok(())
    }

    /// The guest writes.
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
}

//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2).

use std::fmt;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, VirtioDevice};

/// `QueueNotify`.
pub const QUEUE_NOTIFY: u64 = 0x050;

/// The registers of one device.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport").finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// `kicks` has one descriptor per queue.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        _memory: GuestMemoryMmap,
        _kicks: Vec<EventFd>,
        _interrupt: Interrupt,
    ) -> Self {
        Self { device }
    }

    /// The driver reads a register or configuration space.
    pub fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.device.read_config(0, data);
    }

    /// The driver writes a register.
    pub fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

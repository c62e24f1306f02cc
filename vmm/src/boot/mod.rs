//! Loading the guest by the 64-bit boot protocol of x86 Linux (Documentation/arch/x86/boot.rst).

use std::fs::File;

use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;
use wasmvm_protocol::control::BootConfig;

use crate::vm::VmError;

/// Why the guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {}

/// Where the vCPU starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Guest-physical, identity mapped.
    pub rip: u64,
}

/// Loads kernel and initramfs and writes the tables of the boot protocol.
///
/// # Errors
/// [`BootError`].
pub fn load(
    _memory: &GuestMemoryMmap,
    _kernel: &File,
    _initramfs: &File,
    _config: &BootConfig,
    _devices: usize,
) -> Result<Entry, BootError> {
    Ok(Entry { rip: 0 })
}

impl Entry {
    /// Sets the registers that the boot protocol wants.
    ///
    /// # Errors
    /// [`VmError::Kvm`].
    pub fn set_registers(&self, _vcpu: &VcpuFd) -> Result<(), VmError> {
        Ok(())
    }
}

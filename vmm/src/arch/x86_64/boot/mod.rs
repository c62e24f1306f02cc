//! The 64-bit boot protocol of x86 Linux (Documentation/arch/x86/boot.rst).
//!
//! [`params`], [`mod@cmdline`] and [`mod@mp_table`] describe the machine to the kernel, [`entry`] is the processor's
//! state.

pub mod cmdline;
pub mod entry;
pub mod mp_table;
pub mod params;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use wasmvm_protocol::control::BootConfig;

use super::layout::{CMDLINE_ADDRESS, MP_TABLE_ADDRESS};
use cmdline::{CmdlineError, cmdline};
use mp_table::mp_table;
use params::{Initramfs, SEED_BYTES, write_boot_params};

/// Why the machine could not be described to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum BootTablesError {
    /// The command line is longer than the kernel takes.
    #[error("the kernel's command line does not fit")]
    Cmdline(#[source] CmdlineError),
    /// The boot protocol's tables do not fit into RAM.
    #[error("the tables of the boot protocol cannot be written")]
    Write(#[source] GuestMemoryError),
}

/// Writes the tables of the boot protocol, for a machine with `devices` virtio devices.
///
/// # Errors
/// [`BootTablesError`].
pub fn write_boot_tables(
    memory: &GuestMemoryMmap,
    config: &BootConfig,
    devices: usize,
    initramfs: Initramfs,
    seed: &[u8; SEED_BYTES],
) -> Result<(), BootTablesError> {
    let cmdline = cmdline(config, devices).map_err(BootTablesError::Cmdline)?;
    let write = |bytes: &[u8], address| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(BootTablesError::Write)
    };
    write(cmdline.as_bytes_with_nul(), CMDLINE_ADDRESS)?;
    write(&mp_table(), MP_TABLE_ADDRESS)?;
    write_boot_params(memory, initramfs, seed).map_err(BootTablesError::Write)?;
    entry::write_tables(memory).map_err(BootTablesError::Write)
}

//! The processor's architecture: a folder for each, behind the names below, which are all that shared code uses.
//! Shared code knows a device by its interrupt line (GSI) and its registers' address (MMIO).
//!
//! `wasmvm check` (`vmm/cli/src/check`) asks the host for what one architecture needs, and so uses the folder itself.

pub mod x86_64;

pub use x86_64::boot::entry::Entry;
pub use x86_64::boot::params::{Initramfs, SEED_BYTES};
pub use x86_64::boot::{BootTablesError, write_boot_tables};
pub use x86_64::exits::{instruction_address, serve_exit, took_bus_lock};
pub use x86_64::layout::{
    DEVICES_MAX, GSI_FIRST, HIGH_MEMORY_START as KERNEL_ADDRESS_MIN, MMIO_DEVICE_BYTES, MMIO_START,
    RAM_MIB_MAX, RAM_MIB_MIN, low_ram_end, mmio_address, ram_ranges,
};
pub use x86_64::serial::Serial;
pub use x86_64::vm::{clock_ns, init_vcpu, init_vm, notify_of_pause, set_clock_ns, set_features};
pub use x86_64::{ELF_MACHINE, SECCOMP_ARCH};

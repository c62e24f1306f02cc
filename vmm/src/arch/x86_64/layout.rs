//! The guest-physical map.
//!
//! ```text
//! 0         0x500  GDT                          ┐
//! 0x6000    boot data: random seed              │ first page tables and tables of the
//! 0x7000    boot_params ("zero page")           │ 64-bit entry (x86 boot protocol §1.5)
//! 0x8ff0    stack, growing down                 │
//! 0x9000    page tables, 3 pages                │
//! 0x20000   kernel command line                 ┘
//! 0x9fc00   MP table, in the last KiB below 640 KiB; not RAM in the e820 map
//! 1 MiB     kernel where its ELF headers say … RAM … initramfs at the top of low RAM
//! 3 GiB     hole: virtio-mmio at 0xd000_0000, IOAPIC, local APIC, KVM's own pages
//! 4 GiB     RAM beyond 3 GiB
//! 32 GiB    the read-only slots, 2 GiB apart (wasmvm_protocol::slot)
//! ```

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::units::{GIB, MIB, PAGE_BYTES};

/// Smallest guest RAM, MiB: the kernel is linked to 16 MiB.
pub const RAM_MIB_MIN: u32 = 32;
/// Largest guest RAM, MiB: RAM has to end below the read-only slots.
pub const RAM_MIB_MAX: u32 = 16 << 10;

/// The segment descriptors of the 64-bit entry.
pub const GDT_ADDRESS: u64 = 0x500;
/// `setup_data` entries, outside `boot_params`.
pub const SETUP_DATA_ADDRESS: u64 = 0x6000;
/// Address of `boot_params`, the "zero page".
pub const BOOT_PARAMS_ADDRESS: u64 = 0x7000;
/// Initial stack pointer; the kernel leaves it at once.
pub const STACK_ADDRESS: u64 = 0x8ff0;
/// Page map level 4; its two lower levels follow, a page each.
pub const PAGE_TABLES_ADDRESS: u64 = 0x9000;
/// Address of the kernel's command line.
pub const CMDLINE_ADDRESS: u64 = 0x2_0000;
/// Longest kernel command line with its final zero, bytes (`COMMAND_LINE_SIZE` of x86 Linux).
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// The MP floating pointer: Linux looks in the last KiB of conventional memory (`mpparse.c`).
pub const MP_TABLE_ADDRESS: u64 = 0x9_fc00;
/// Start of the RAM above the legacy hole.
pub const HIGH_MEMORY_START: u64 = MIB;

/// Guest-physical address at which low RAM ends at the latest.
pub const RAM_HOLE_START: u64 = 3 * GIB;
/// Guest-physical address at which the rest of RAM starts.
pub const RAM_HOLE_END: u64 = 4 * GIB;

/// Registers of the first virtio-mmio device; the others follow at [`MMIO_DEVICE_BYTES`].
pub const MMIO_START: u64 = 0xd000_0000;
/// Register window of one device.
pub const MMIO_DEVICE_BYTES: u64 = PAGE_BYTES;
/// Interrupt line (IOAPIC pin, KVM GSI) of the first device. ISA lines need no further routing.
pub const GSI_FIRST: u32 = 5;
/// Most devices: lines 5 to 12; 13 is the coprocessor's by tradition.
pub const DEVICES_MAX: usize = 8;

/// IOAPIC registers, emulated by KVM.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Local APIC registers, emulated by KVM.
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// Identity-mapped page that `kvm_intel` wants for real mode.
pub const KVM_IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Task state segment that `kvm_intel` wants for real mode, three pages.
pub const KVM_TSS_ADDRESS: usize = 0xfffb_d000;

/// Registers of device `index`.
#[must_use]
pub fn mmio_address(index: usize) -> u64 {
    MMIO_START + index as u64 * MMIO_DEVICE_BYTES
}

/// Places and lengths of the regions of `bytes` of RAM: what would lie in the hole lies behind it.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(RAM_HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(RAM_HOLE_END), bytes - low));
    }
    ranges
}

/// Bytes of RAM below the hole.
#[must_use]
pub fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    memory
        .find_region(GuestAddress(0))
        .map_or(0, GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmvm_protocol::slot::SLOT_ADDRESS;

    #[test]
    fn the_largest_ram_ends_below_the_slot() {
        let above_hole = u64::from(RAM_MIB_MAX) * MIB - RAM_HOLE_START;
        assert!(RAM_HOLE_END + above_hole <= SLOT_ADDRESS);
    }

    #[test]
    fn devices_lie_in_the_hole() {
        assert!(mmio_address(0) >= RAM_HOLE_START);
        assert!(mmio_address(DEVICES_MAX) <= u64::from(IOAPIC_ADDRESS));
    }
}

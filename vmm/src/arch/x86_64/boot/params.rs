//! `boot_params`, the "zero page" (Documentation/arch/x86/zero-page.rst), and what hangs on it.

use linux_loader::loader::bootparam::{SETUP_RNG_SEED, boot_e820_entry, boot_params};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

use crate::arch::x86_64::layout::{
    BOOT_PARAMS_ADDRESS, CMDLINE_ADDRESS, CMDLINE_BYTES_MAX, HIGH_MEMORY_START, MP_TABLE_ADDRESS,
    RAM_HOLE_END, SETUP_DATA_ADDRESS, low_ram_end,
};

/// `hdr.boot_flag` and `hdr.header`: without the right values the kernel ignores the rest.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `hdr.type_of_loader` of a boot loader without a number of its own ("undefined").
const LOADER_TYPE: u8 = 0xff;
/// `E820_TYPE_RAM` of x86 Linux: the range is RAM.
const E820_RAM: u32 = 1;
/// Size of the seed: ChaCha20's key, and the most that the kernel mixes in from one seed.
pub const SEED_BYTES: usize = 32;

/// Place of the initramfs in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest-physical address, page aligned.
    pub address: u32,
    /// Length of the file, bytes.
    pub bytes: u32,
}

/// Writes `boot_params` and the random seed that it points to.
///
/// # Errors
/// vm-memory's, when RAM is smaller than the layout allows.
pub fn write_boot_params(
    memory: &GuestMemoryMmap,
    initramfs: Initramfs,
    seed: &[u8; SEED_BYTES],
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = low(CMDLINE_ADDRESS);
    params.hdr.cmdline_size = low(CMDLINE_BYTES_MAX as u64);
    params.hdr.ramdisk_image = initramfs.address;
    params.hdr.ramdisk_size = initramfs.bytes;
    params.hdr.setup_data = SETUP_DATA_ADDRESS;
    for (slot, entry) in params.e820_table.iter_mut().zip(e820(memory)) {
        *slot = entry;
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(BOOT_PARAMS_ADDRESS))?;
    memory.write_slice(&seed_data(seed), GuestAddress(SETUP_DATA_ADDRESS))
}

/// RAM as the kernel may use it. Few entries: the kernel walks them for every empty page-table slot.
/// The last KiB below 640 KiB, with the MP table, is left out.
fn e820(memory: &GuestMemoryMmap) -> Vec<boot_e820_entry> {
    let ram = |addr: u64, end: u64| boot_e820_entry {
        addr,
        size: end - addr,
        type_: E820_RAM,
    };
    let mut entries = vec![
        ram(0, MP_TABLE_ADDRESS),
        ram(HIGH_MEMORY_START, low_ram_end(memory)),
    ];
    let end = memory.last_addr().raw_value() + 1;
    if end > RAM_HOLE_END {
        entries.push(ram(RAM_HOLE_END, end));
    }
    entries
}

/// `struct setup_data` with a seed that the kernel trusts and wipes: `getrandom` never blocks.
fn seed_data(seed: &[u8; SEED_BYTES]) -> Vec<u8> {
    let no_next = 0u64;
    let mut bytes = no_next.to_le_bytes().to_vec();
    bytes.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    bytes.extend_from_slice(&low(SEED_BYTES as u64).to_le_bytes());
    bytes.extend_from_slice(seed);
    bytes
}

/// The layout's low addresses fit 32 bits.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use crate::units::{GIB, MIB};

    fn entries(ram_mib: u32) -> Vec<(u64, u64)> {
        let memory = allocate(ram_mib, false).unwrap();
        let found = e820(&memory);
        found
            .iter()
            .map(|entry| (entry.addr, entry.addr + entry.size))
            .collect()
    }

    #[test]
    fn the_map_has_two_entries_or_three() {
        let low_end = (0, MP_TABLE_ADDRESS);
        assert_eq!(entries(32), [low_end, (MIB, 32 * MIB)]);
        assert_eq!(entries(4096), [low_end, (MIB, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn golden_bytes_of_the_header() {
        let memory = allocate(32, false).unwrap();
        let initramfs = Initramfs {
            address: 0x1f0_0000,
            bytes: 0x1234,
        };
        write_boot_params(&memory, initramfs, &[7; 32]).unwrap();
        let at = |offset| -> u32 {
            memory
                .read_obj(GuestAddress(BOOT_PARAMS_ADDRESS + offset))
                .unwrap()
        };
        assert_eq!(at(0x202), 0x5372_6448);
        assert_eq!((at(0x218), at(0x21c)), (0x1f0_0000, 0x1234));
        assert_eq!((at(0x228), at(0x250)), (0x2_0000, 0x6000));
        let entries: u8 = memory
            .read_obj(GuestAddress(BOOT_PARAMS_ADDRESS + 0x1e8))
            .unwrap();
        assert_eq!(entries, 2);
        let mut seed = [0; 48];
        memory
            .read_slice(&mut seed, GuestAddress(SETUP_DATA_ADDRESS))
            .unwrap();
        assert_eq!(seed[..17], *b"\0\0\0\0\0\0\0\0\x09\0\0\0\x20\0\0\0\x07");
    }
}

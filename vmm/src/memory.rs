//! Guest RAM: anonymous memory of which only touched pages cost, and files mapped into it.
//!
//! A file (kernel, initramfs) is mapped privately over a piece of RAM instead of being read: pages
//! that the guest only reads stay the page cache's, shared by all VMs; pages that it writes become its own.

use std::fs::File;
use std::io;

use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::{RAM_MIB_MAX, RAM_MIB_MIN, ram_ranges};
use crate::mapping::RamRange;
use crate::units::{MIB, PAGE_BYTES, page_ceil};

/// Why guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is not one that the machine can have.
    #[error(
        "guest RAM of {0} MiB; allowed are powers of two from {RAM_MIB_MIN} to {RAM_MIB_MAX} MiB"
    )]
    Size(u32),
    /// The process has no address space for guest RAM.
    #[error("cannot map {ram_mib} MiB of guest RAM")]
    Map {
        /// Size of the RAM asked for, MiB.
        ram_mib: u32,
        /// Error of vm-memory's mapping.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// `madvise(2)` did not take the page size.
    #[error("cannot set the page size of guest RAM")]
    Advise(#[source] io::Error),
    /// `madvise(2)` did not take `MADV_DONTDUMP`.
    #[error("cannot keep guest RAM out of memory dumps")]
    Dump(#[source] io::Error),
    /// A file does not fit at its place in RAM.
    #[error("{length:#x} bytes at {address:#x} are not page aligned or not in guest RAM")]
    Place {
        /// Guest-physical address of the place.
        address: u64,
        /// Length of the mapping, bytes.
        length: u64,
    },
    /// The file is too short. An access to a page behind a file's end would kill the process.
    #[error("a file of {file_bytes} bytes ends before {wanted}")]
    FileEnd {
        /// Length of the file, bytes.
        file_bytes: u64,
        /// End of the mapping in the file, bytes from its start.
        wanted: u64,
    },
    /// `mmap(2)` of a file failed.
    #[error("cannot map a file into guest RAM at {address:#x}")]
    MapFile {
        /// Guest-physical address of the mapping.
        address: u64,
        /// Error of `mmap(2)`, or of reading the file's length.
        #[source]
        source: io::Error,
    },
}

/// Reserves guest RAM of `ram_mib`; no page is touched. RAM beyond 3 GiB is mapped above 4 GiB.
///
/// # Errors
/// [`MemoryError`].
pub fn allocate(ram_mib: u32, huge_pages: bool) -> Result<GuestMemoryMmap, MemoryError> {
    if !ram_mib.is_power_of_two() || !(RAM_MIB_MIN..=RAM_MIB_MAX).contains(&ram_mib) {
        return Err(MemoryError::Size(ram_mib));
    }
    let ranges = ram_ranges(u64::from(ram_mib) * MIB).into_iter();
    let ranges: Vec<_> = ranges
        .map(|(start, bytes)| (start, to_usize(bytes)))
        .collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges)
        .map_err(|source| MemoryError::Map { ram_mib, source })?;
    for region in memory.iter() {
        let (address, length) = (region.start_addr().0, region.len());
        let ram = RamRange::find(&memory, address, to_usize(length))
            .ok_or(MemoryError::Place { address, length })?;
        advise(&ram, huge_pages)?;
    }
    Ok(memory)
}

/// Narrows a size. Sizes here are bounded by [`RAM_MIB_MAX`] and this crate is for 64-bit hosts only.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Sets the page size. With transparent huge pages `always`, one touch of RAM would charge 2 MiB to a small task.
fn advise(ram: &RamRange<'_>, huge_pages: bool) -> Result<(), MemoryError> {
    match ram.set_huge_pages(huge_pages) {
        // A host kernel without transparent huge pages knows neither advice.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(MemoryError::Advise(errno.into())),
    }
    keep_out_of_dumps(ram)
}

/// Keeps a range out of core dumps: a dump of the VMM is about the VMM, and a tenant's memory has no place in it.
fn keep_out_of_dumps(ram: &RamRange<'_>) -> Result<(), MemoryError> {
    let kept = ram.keep_out_of_dumps();
    kept.map_err(|errno| MemoryError::Dump(errno.into()))
}

/// Maps `length` bytes of `file` from `offset` over guest RAM at `address`, privately. `offset` and `address` must
/// be page aligned. Beyond `length` the last page holds the file's next bytes, or zeros.
///
/// # Errors
/// [`MemoryError::Place`], [`MemoryError::FileEnd`], [`MemoryError::MapFile`], [`MemoryError::Dump`].
pub fn map_file(
    memory: &GuestMemoryMmap,
    address: u64,
    file: &File,
    offset: u64,
    length: u64,
) -> Result<(), MemoryError> {
    let place = MemoryError::Place { address, length };
    let Some(span) = page_ceil(length).filter(|span| *span > 0) else {
        return Err(place);
    };
    if !address.is_multiple_of(PAGE_BYTES) || !offset.is_multiple_of(PAGE_BYTES) {
        return Err(place);
    }
    let Some(host) = RamRange::find(memory, address, to_usize(span)) else {
        return Err(place);
    };
    let failed = |source| MemoryError::MapFile { address, source };
    let file_bytes = file.metadata().map_err(failed)?.len();
    match offset.checked_add(length) {
        Some(wanted) if wanted <= file_bytes => {}
        wanted => {
            return Err(MemoryError::FileEnd {
                file_bytes,
                wanted: wanted.unwrap_or(u64::MAX),
            });
        }
    }
    host.map_over(file, offset)
        .map_err(|errno| failed(errno.into()))?;
    keep_out_of_dumps(&host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::low_ram_end;
    use crate::arch::x86_64::layout::RAM_HOLE_START;
    use crate::units::GIB;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn ram_leaves_the_hole_free() {
        let memory = allocate(8192, false).unwrap();
        assert_eq!(low_ram_end(&memory), RAM_HOLE_START);
        assert!(!memory.address_in_range(GuestAddress(RAM_HOLE_START)));
        assert_eq!(memory.last_addr(), GuestAddress(9 * GIB - 1));
    }

    #[test]
    fn odd_sizes_are_refused() {
        for ram_mib in [0, 16, 100, 32768] {
            assert!(
                matches!(allocate(ram_mib, false), Err(MemoryError::Size(_))),
                "{ram_mib}"
            );
        }
    }

    /// `dd` among the flags of a mapping (`proc_pid_smaps(5)`).
    #[test]
    fn no_part_of_ram_is_in_a_memory_dump() {
        let memory = allocate(32, false).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        map_file(&memory, 0x10_0000, &file, 0, 5000).unwrap();
        let start = memory.find_region(GuestAddress(0)).unwrap().as_ptr().addr();
        let ram = start..start + to_usize(32 * MIB);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut in_ram, mut parts) = (false, 0);
        for line in smaps.lines() {
            let address = line.split('-').next().unwrap_or_default();
            if let (Ok(address), true) = (usize::from_str_radix(address, 16), line.contains('-')) {
                in_ram = ram.contains(&address);
            } else if let (Some(flags), true) = (line.strip_prefix("VmFlags:"), in_ram) {
                assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
                parts += 1;
            }
        }
        assert_eq!(parts, 3);
    }

    #[test]
    fn a_file_is_mapped_privately() {
        let memory = allocate(32, false).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        map_file(&memory, 0x10_0000, &file, 0, 5000).unwrap();
        let byte: u8 = memory.read_obj(GuestAddress(0x10_0000 + 4999)).unwrap();
        let beyond: u8 = memory.read_obj(GuestAddress(0x10_0000 + 5000)).unwrap();
        assert_eq!((byte, beyond), (7, 0));
        memory.write_obj(9u8, GuestAddress(0x10_0000)).unwrap();
        let mut on_disk = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut on_disk, 0).unwrap();
        assert_eq!(on_disk, [7]);
    }

    #[test]
    fn a_file_outside_ram_is_refused() {
        let memory = allocate(32, false).unwrap();
        let file = tempfile::tempfile().unwrap();
        for (address, length) in [
            (0x10, 10),
            (0x1fff_f000, 0x2000),
            (0x1000, 0),
            (0, u64::MAX),
        ] {
            let refused = map_file(&memory, address, &file, 0, length);
            assert!(
                matches!(refused, Err(MemoryError::Place { .. })),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn no_ram_lies_where_something_else_is() {
        use crate::arch::x86_64::layout::{
            DEVICES_MAX, IOAPIC_ADDRESS, KVM_IDENTITY_MAP_ADDRESS, LOCAL_APIC_ADDRESS, MMIO_START,
            mmio_address,
        };
        use wasmvm_protocol::slot::{SLOT_STRIDE_BYTES, SLOTS_MAX, slot_address};

        let slots = (0..SLOTS_MAX).map(|index| {
            let start = slot_address(index).unwrap();
            (start, start + SLOT_STRIDE_BYTES)
        });
        let taken = slots.chain([
            (MMIO_START, mmio_address(DEVICES_MAX)),
            (
                IOAPIC_ADDRESS.into(),
                u64::from(IOAPIC_ADDRESS) + PAGE_BYTES,
            ),
            (
                LOCAL_APIC_ADDRESS.into(),
                u64::from(LOCAL_APIC_ADDRESS) + PAGE_BYTES,
            ),
            // The page and the three of the task state segment behind it.
            (
                KVM_IDENTITY_MAP_ADDRESS,
                KVM_IDENTITY_MAP_ADDRESS + 4 * PAGE_BYTES,
            ),
        ]);
        let taken: Vec<_> = taken.collect();
        let classes = (RAM_MIB_MIN.ilog2()..=RAM_MIB_MAX.ilog2()).map(|log| MIB << log);
        for bytes in classes {
            let ranges = ram_ranges(bytes);
            assert_eq!(ranges.iter().map(|(_, bytes)| bytes).sum::<u64>(), bytes);
            for (start, bytes) in ranges {
                let end = start.0 + bytes;
                let apart = |(from, to): &(u64, u64)| end <= *from || *to <= start.0;
                assert!(taken.iter().all(apart), "{start:?} to {end:#x}");
            }
        }
    }
}

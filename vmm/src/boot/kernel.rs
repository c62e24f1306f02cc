//! The kernel's ELF file, mapped into guest RAM.
//!
//! The kernel is ours, so the reader takes what `kernel-config/` builds and refuses the rest. Its file
//! is 9 MB of which 7 are padding between 2 MiB-aligned sections (zeros and 0xCC); as the segments
//! lie page aligned in the file they are mapped, and untouched padding costs nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::{ELF_MACHINE, KERNEL_ADDRESS_MIN};
use crate::memory::{MemoryError, map_file};
use crate::units::{PAGE_BYTES, page_ceil};

/// Most program headers read; a kernel has 4 or 5.
pub const PROGRAM_HEADERS_MAX: u16 = 16;

/// ELF-64 header: magic, 64 bit, little endian, version 1 (System V ABI, `e_ident`).
const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const PT_LOAD: u32 = 1;

/// Why the kernel was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file ends before a header that it should have, or cannot be read.
    #[error("cannot read {what} of the kernel")]
    Read {
        /// Header that was being read.
        what: &'static str,
        /// The operating system's error, or `UnexpectedEof` at the end of the file.
        #[source]
        source: io::Error,
    },
    /// The file is not an ELF file for x86-64; a bzImage is none.
    #[error("the kernel is no 64-bit x86 ELF file (an uncompressed vmlinux is wanted)")]
    NotElf,
    /// A program header table that a kernel does not have.
    #[error("the kernel has {count} program headers of {bytes} bytes")]
    ProgramHeaders {
        /// `e_phnum` of the ELF header: number of program headers.
        count: u16,
        /// `e_phentsize` of the ELF header: size of each program header.
        bytes: u16,
    },
    /// A segment that is unaligned, inconsistent, or not between 1 MiB and the initramfs.
    #[error(
        "kernel segment at {address:#x} ({file_bytes:#x} bytes at {offset:#x} of the file, \
         {memory_bytes:#x} in memory) cannot be placed below {limit:#x}"
    )]
    Segment {
        /// `p_paddr` of the program header: guest-physical address.
        address: u64,
        /// `p_offset` of the program header: place in the file, bytes.
        offset: u64,
        /// `p_filesz` of the program header: length in the file, bytes.
        file_bytes: u64,
        /// `p_memsz` of the program header: length in memory, bytes.
        memory_bytes: u64,
        /// Guest-physical address that the kernel must end below: the initramfs starts there.
        limit: u64,
    },
    /// The entry point is in no segment.
    #[error("the kernel's entry point {0:#x} is in none of its segments")]
    Entry(u64),
    /// A segment cannot be mapped.
    #[error("a kernel segment cannot be mapped")]
    Map(#[source] MemoryError),
    /// The rest of a segment's last page cannot be cleared.
    #[error("a kernel segment's end cannot be cleared")]
    Clear(#[source] vm_memory::GuestMemoryError),
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// Maps the kernel's segments below `limit` and returns its entry point, both guest-physical.
///
/// # Errors
/// [`KernelError`].
pub fn load_kernel(
    memory: &GuestMemoryMmap,
    kernel: &File,
    limit: u64,
) -> Result<u64, KernelError> {
    let (entry, segments) = read_headers(kernel)?;
    for segment in &segments {
        segment.check(limit)?;
        segment.map(memory, kernel)?;
    }
    let inside = |segment: &Segment| entry.wrapping_sub(segment.address) < segment.file_bytes;
    if segments.iter().any(inside) {
        Ok(entry)
    } else {
        Err(KernelError::Entry(entry))
    }
}

fn read_headers(kernel: &File) -> Result<(u64, Vec<Segment>), KernelError> {
    let read = |what| move |source| KernelError::Read { what, source };
    let mut header = [0; HEADER_BYTES];
    kernel
        .read_exact_at(&mut header, 0)
        .map_err(read("the ELF header"))?;
    if !header.starts_with(&IDENT) || u16_at(&header, 18) != ELF_MACHINE {
        return Err(KernelError::NotElf);
    }
    let (bytes, count) = (u16_at(&header, 54), u16_at(&header, 56));
    if bytes != PROGRAM_HEADER_BYTES || count > PROGRAM_HEADERS_MAX {
        return Err(KernelError::ProgramHeaders { count, bytes });
    }
    let mut table = vec![0; usize::from(count) * usize::from(bytes)];
    let table_offset = u64_at(&header, 32);
    kernel
        .read_exact_at(&mut table, table_offset)
        .map_err(read("the program headers"))?;
    let segments = table
        .chunks_exact(usize::from(bytes))
        .filter(|header| u32_at(header, 0) == PT_LOAD)
        .map(|header| Segment {
            offset: u64_at(header, 8),
            address: u64_at(header, 24),
            file_bytes: u64_at(header, 32),
            memory_bytes: u64_at(header, 40),
        })
        .collect();
    Ok((u64_at(&header, 24), segments))
}

impl Segment {
    fn check(&self, limit: u64) -> Result<(), KernelError> {
        let aligned = (self.address | self.offset).is_multiple_of(PAGE_BYTES);
        let end = self
            .address
            .checked_add(self.memory_bytes)
            .and_then(page_ceil);
        let placed = self.address >= KERNEL_ADDRESS_MIN && end.is_some_and(|end| end <= limit);
        if aligned && placed && self.file_bytes <= self.memory_bytes {
            return Ok(());
        }
        Err(KernelError::Segment {
            address: self.address,
            offset: self.offset,
            file_bytes: self.file_bytes,
            memory_bytes: self.memory_bytes,
            limit,
        })
    }

    fn map(&self, memory: &GuestMemoryMmap, kernel: &File) -> Result<(), KernelError> {
        if self.file_bytes == 0 {
            return Ok(());
        }
        map_file(memory, self.address, kernel, self.offset, self.file_bytes)
            .map_err(KernelError::Map)?;
        // The last page holds the file's next bytes, but the segment continues with zeros (.bss).
        let end = self.address + self.file_bytes;
        let rest = vec![0; usize::try_from(end.next_multiple_of(PAGE_BYTES) - end).unwrap_or(0)];
        memory
            .write_slice(&rest, GuestAddress(end))
            .map_err(KernelError::Clear)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Every offset here is a constant inside a header of checked length.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use crate::units::MIB;
    use proptest::prelude::*;
    use std::io::Write;

    const ENTRY: u64 = 0x100_0000;

    /// A kernel of one segment: a page of headers, then 0x1800 bytes of 0x90 with more behind them.
    fn kernel(address: u64, entry: u64, memory_bytes: u64) -> Vec<u8> {
        let mut file = vec![0; 4096];
        file[..7].copy_from_slice(&IDENT);
        file[18..20].copy_from_slice(&ELF_MACHINE.to_le_bytes());
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&PROGRAM_HEADER_BYTES.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        for (at, value) in [(8, 4096), (24, address), (32, 0x1800), (40, memory_bytes)] {
            file[64 + at..72 + at].copy_from_slice(&u64::to_le_bytes(value));
        }
        file.extend_from_slice(&[0x90; 0x1800]);
        file.extend_from_slice(&[0xee; 0x1000]);
        file
    }

    fn load(bytes: &[u8]) -> Result<(u64, GuestMemoryMmap), KernelError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let memory = allocate(32, false).unwrap();
        load_kernel(&memory, &file, 30 * MIB).map(|entry| (entry, memory))
    }

    #[test]
    fn a_segment_is_mapped_and_its_bss_is_zero() {
        let (entry, memory) = load(&kernel(ENTRY, ENTRY + 0x10, 0x3000)).unwrap();
        assert_eq!(entry, ENTRY + 0x10);
        let mut found = [0; 0x2000];
        memory.read_slice(&mut found, GuestAddress(ENTRY)).unwrap();
        assert_eq!(found[..0x1800], [0x90; 0x1800]);
        assert_eq!(found[0x1800..], [0; 0x800]);
    }

    #[test]
    fn segments_in_the_wrong_place_are_refused() {
        for (address, memory_bytes) in [
            (0x1000, 0x1800),
            (ENTRY + 8, 0x1800),
            (ENTRY, 0x100),
            (ENTRY, u64::MAX - 0x100),
        ] {
            let refused = load(&kernel(address, address, memory_bytes)).unwrap_err();
            assert!(matches!(refused, KernelError::Segment { .. }), "{refused}");
        }
    }

    #[test]
    fn an_entry_outside_every_segment_is_refused() {
        let refused = load(&kernel(ENTRY, ENTRY + 0x1800, 0x3000)).unwrap_err();
        assert!(matches!(refused, KernelError::Entry(_)), "{refused}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(matches!(load(b"MZ").unwrap_err(), KernelError::Read { .. }));
        assert!(matches!(
            load(&[b'M'; 4096]).unwrap_err(),
            KernelError::NotElf
        ));
        let cut_off = load(&kernel(ENTRY, ENTRY, 0x1800)[..0x1400]).unwrap_err();
        assert!(
            matches!(cut_off, KernelError::Map(MemoryError::FileEnd { .. })),
            "{cut_off}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_headers_are_loaded_or_refused(
            header in proptest::collection::vec(any::<u8>(), 64 + 56 * 2),
            count in 0u16..3,
        ) {
            let mut bytes = header;
            bytes[..7].copy_from_slice(&IDENT);
            bytes[18..20].copy_from_slice(&ELF_MACHINE.to_le_bytes());
            bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
            bytes[54..56].copy_from_slice(&PROGRAM_HEADER_BYTES.to_le_bytes());
            bytes[56..58].copy_from_slice(&count.to_le_bytes());
            bytes[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
            let _loaded_or_refused = load(&bytes);
        }
    }
}

//! The MP table: without ACPI, Linux learns of the IOAPIC from the MP table (MultiProcessor Specification 1.4).
//!
//! One processor, one ISA bus whose sixteen lines go straight to the IOAPIC's first sixteen pins.

use crate::arch::x86_64::layout::{IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS, MP_TABLE_ADDRESS};

const SPEC_1_4: u8 = 4;
const FLOATING_POINTER_BYTES: u8 = 16;
const HEADER_BYTES: usize = 44;
const ISA_LINES: u8 = 16;
const ISA_BUS: u8 = 0;
const LOCAL_APIC_ID: u8 = 0;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_ID: u8 = 1;
const IOAPIC_VERSION: u8 = 0x11;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Types of the table's entries (§4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Types of interrupts in an entry (table 4-10).
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;

/// The floating pointer and the table behind it, to be placed at [`MP_TABLE_ADDRESS`].
#[must_use]
pub fn mp_table() -> Vec<u8> {
    let mut entries = vec![];
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    // Enabled (1) and boot processor (2); signature and features are CPUID's business.
    let mut processor = [0; 20];
    processor[..4].copy_from_slice(&[PROCESSOR, LOCAL_APIC_ID, LOCAL_APIC_VERSION, 1 | 2]);
    add(&processor);
    add(&[BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IOAPIC_ADDRESS.to_le_bytes();
    add(&[IOAPIC, IOAPIC_ID, IOAPIC_VERSION, 1, a, b, c, d]);
    for line in 0..ISA_LINES {
        // Flags 0: trigger and polarity as the bus has them, edge and active high.
        add(&[INTERRUPT, VECTORED, 0, 0, ISA_BUS, line, IOAPIC_ID, line]);
    }
    add(&[LOCAL_INTERRUPT, EXTINT, 0, 0, ISA_BUS, 0, LOCAL_APIC_ID, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut bytes = floating_pointer();
    let mut table = header(entries.len(), count);
    table.append(&mut entries);
    table[7] = checksum(&table);
    bytes.append(&mut table);
    bytes
}

/// The MP floating pointer structure (§4.1).
fn floating_pointer() -> Vec<u8> {
    let mut bytes = vec![0; usize::from(FLOATING_POINTER_BYTES)];
    let table = u32::try_from(MP_TABLE_ADDRESS).unwrap_or(0) + u32::from(FLOATING_POINTER_BYTES);
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = FLOATING_POINTER_BYTES / 16;
    bytes[9] = SPEC_1_4;
    bytes[10] = checksum(&bytes);
    bytes
}

/// The configuration table's header (§4.2), with its checksum still zero.
fn header(entries_bytes: usize, count: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    let length = u16::try_from(HEADER_BYTES + entries_bytes).unwrap_or(0);
    bytes[..4].copy_from_slice(b"PCMP");
    bytes[4..6].copy_from_slice(&length.to_le_bytes());
    bytes[6] = SPEC_1_4;
    bytes[8..28].copy_from_slice(b"WASMVM  wasmvm      ");
    bytes[34..36].copy_from_slice(&count.to_le_bytes());
    bytes[36..40].copy_from_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
    bytes
}

/// The byte by which the sum of all bytes becomes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_sum_to_zero_and_lengths_are_right() {
        let bytes = mp_table();
        let (pointer, table) = bytes.split_at(usize::from(FLOATING_POINTER_BYTES));
        assert_eq!(checksum(pointer), 0);
        assert_eq!(checksum(table), 0);
        assert_eq!(
            usize::from(u16::from_le_bytes([table[4], table[5]])),
            table.len()
        );
        assert_eq!(pointer[4..8], (0x9_fc10u32).to_le_bytes());
    }

    #[test]
    fn the_entry_count_matches_a_walk() {
        let bytes = mp_table();
        let table = &bytes[usize::from(FLOATING_POINTER_BYTES)..];
        let (mut at, mut count) = (HEADER_BYTES, 0);
        while at < table.len() {
            at += if table[at] == PROCESSOR { 20 } else { 8 };
            count += 1;
        }
        assert_eq!(
            (at, count),
            (table.len(), u16::from_le_bytes([table[34], table[35]]))
        );
    }

    #[test]
    fn it_fits_below_640_kib() {
        assert!(MP_TABLE_ADDRESS + mp_table().len() as u64 <= 640 << 10);
    }
}

//! Long mode in ring 0, in which both guests start: Linux and that of `wasmvm check`.

use kvm_bindings::{kvm_segment, kvm_sregs};

/// Descriptor of 64-bit code: flat, present, ring 0, accessed.
pub const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Descriptor of data: flat, present, ring 0, accessed.
pub const DATA: u64 = 0x00cf_9300_0000_ffff;
/// `RFLAGS` with interrupts off.
pub const RFLAGS_RESERVED: u64 = 1 << 1;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Selectors of a guest's segments, and guest-physical addresses of its tables.
#[derive(Clone, Copy, Debug)]
pub struct LongMode {
    /// Selector of the [`CODE`] descriptor.
    pub code: u16,
    /// Selector of the [`DATA`] descriptor.
    pub data: u16,
    /// Address of the table of descriptors.
    pub gdt_address: u64,
    /// Number of descriptors in the table.
    pub gdt_entries: u16,
    /// Address of the topmost page table.
    pub page_tables: u64,
}

impl LongMode {
    /// Changes `sregs` from the state at reset, which holds a valid task register for VMX.
    pub fn set(&self, sregs: &mut kvm_sregs) {
        let data = kvm_segment {
            limit: u32::MAX,
            selector: self.data,
            type_: 0b0011,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..kvm_segment::default()
        };
        sregs.cs = kvm_segment {
            selector: self.code,
            type_: 0b1011,
            l: 1,
            db: 0,
            ..data
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.gdt.base = self.gdt_address;
        sregs.gdt.limit = self.gdt_entries * 8 - 1;
        sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
        sregs.cr3 = self.page_tables;
        sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
        sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_agree_with_the_descriptors() {
        let tables = LongMode {
            code: 0x10,
            data: 0x18,
            gdt_address: 0,
            gdt_entries: 4,
            page_tables: 0,
        };
        let mut sregs = kvm_sregs::default();
        tables.set(&mut sregs);
        assert_eq!(CODE >> 53 & 1, u64::from(sregs.cs.l));
        assert_eq!(CODE >> 40 & 0xf, u64::from(sregs.cs.type_));
        assert_eq!(DATA >> 40 & 0xf, u64::from(sregs.ds.type_));
        assert_eq!(sregs.gdt.limit, 31);
    }
}

//! The state in which the 64-bit entry finds the processor (boot protocol §1.15): long mode, the
//! first GiB mapped one to one, flat segments, interrupts off, RSI pointing to `boot_params`.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::arch::x86_64::layout::{
    BOOT_PARAMS_ADDRESS, GDT_ADDRESS, PAGE_TABLES_ADDRESS, STACK_ADDRESS,
};
use crate::arch::x86_64::long_mode::{CODE, DATA, LongMode, RFLAGS_RESERVED};
use crate::kvm::KvmError;
use crate::units::PAGE_BYTES;

/// Selectors of the boot protocol's flat segments: `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Two null descriptors, then code and data, at the places that the selectors above name.
const GDT: [u64; 4] = [0, 0, CODE, DATA];
const LONG_MODE: LongMode = LongMode {
    code: CODE_SELECTOR,
    data: DATA_SELECTOR,
    gdt_address: GDT_ADDRESS,
    gdt_entries: 4,
    page_tables: PAGE_TABLES_ADDRESS,
};

const PAGE_PRESENT_WRITABLE: u64 = 1 | 1 << 1;
const PAGE_LARGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const TABLE_ENTRIES: u64 = 512;

/// `MSR_IA32_MISC_ENABLE`: with fast strings off Linux would not use `rep movs` on Intel.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;

/// Place at which the vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Guest-physical address of the first instruction, in the identity-mapped GiB.
    pub rip: u64,
}

/// Writes page tables and descriptors.
///
/// # Errors
/// vm-memory's, when RAM is smaller than the layout allows.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let upper = PAGE_TABLES_ADDRESS + PAGE_BYTES;
    let directory = upper + PAGE_BYTES;
    memory.write_obj(
        upper | PAGE_PRESENT_WRITABLE,
        GuestAddress(PAGE_TABLES_ADDRESS),
    )?;
    memory.write_obj(directory | PAGE_PRESENT_WRITABLE, GuestAddress(upper))?;
    for index in 0..TABLE_ENTRIES {
        let entry = (index * LARGE_PAGE_BYTES) | PAGE_LARGE | PAGE_PRESENT_WRITABLE;
        memory.write_obj(entry, GuestAddress(directory + index * 8))?;
    }
    memory.write_obj(GDT, GuestAddress(GDT_ADDRESS))
}

impl Entry {
    /// Sets the vCPU's registers; CPUID must be set before.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_registers(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let mut sregs = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
        LONG_MODE.set(&mut sregs);
        vcpu.set_sregs(&sregs)
            .map_err(KvmError::of("KVM_SET_SREGS"))?;
        let regs = kvm_regs {
            rip: self.rip,
            rsi: BOOT_PARAMS_ADDRESS,
            rsp: STACK_ADDRESS,
            rflags: RFLAGS_RESERVED,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))?;
        set_fast_strings(vcpu)
    }
}

fn set_fast_strings(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const CALL: &str = "KVM_SET_MSRS of IA32_MISC_ENABLE";
    let wanted = kvm_msr_entry {
        index: MSR_MISC_ENABLE,
        ..kvm_msr_entry::default()
    };
    // A list of one entry is always possible.
    let Ok(mut msrs) = Msrs::from_entries(&[wanted]) else {
        return Ok(());
    };
    // Other bits say what the virtual performance unit lacks and must not change.
    vcpu.get_msrs(&mut msrs)
        .map_err(KvmError::of("KVM_GET_MSRS of IA32_MISC_ENABLE"))?;
    for msr in msrs.as_mut_slice() {
        msr.data |= MISC_ENABLE_FAST_STRINGS;
    }
    match vcpu.set_msrs(&msrs).map_err(KvmError::of(CALL))? {
        1 => Ok(()),
        _ => Err(KvmError::of(CALL)(kvm_ioctls::Error::new(libc::EINVAL))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn the_first_gib_is_mapped_one_to_one() {
        let memory = allocate(32, false).unwrap();
        write_tables(&memory).unwrap();
        let at = |address| -> u64 { memory.read_obj(GuestAddress(address)).unwrap() };
        assert_eq!((at(0x9000), at(0xa000)), (0xa003, 0xb003));
        assert_eq!(
            (at(0xb000), at(0xb008), at(0xbff8)),
            (0x83, 0x20_0083, 0x3fe0_0083)
        );
    }

    #[test]
    fn selectors_name_the_descriptors() {
        let index = |selector: u16| usize::from(selector / 8);
        assert_eq!(GDT[index(CODE_SELECTOR)], CODE);
        assert_eq!(GDT[index(DATA_SELECTOR)], DATA);
        assert_eq!(GDT.len(), usize::from(LONG_MODE.gdt_entries));
    }
}

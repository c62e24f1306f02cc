//! Model-specific registers that a guest may read or write. An access to any other register raises #GP in the guest.
//!
//! On the list are the registers that the guest's kernel uses (Linux arch/x86) and that a kernel can protect itself
//! by. Not on it: KVM's MSRs for steal time, asynchronous page faults, polling and migration, which tell of the
//! host; counters, traces and their controls; machine checks, MTRRs, firmware's and chipset's. KVM does not filter
//! the local APIC's own registers (x2APIC, 0x800 to 0x8ff).

use kvm_ioctls::{MsrFilterRange, MsrFilterRangeFlags};

/// Access that a guest has to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, by RDMSR, only.
    Read,
    /// Writing, by WRMSR, only: the register is a command.
    Write,
    /// Reading and writing, by RDMSR and WRMSR.
    Both,
}
use Access::{Both, Read, Write};

/// First and last register of a kind, and the access.
pub const READABLE_AND_WRITABLE: &[(u32, u32, Access)] = &[
    (0x10, 0x10, Both),               // TSC
    (0x17, 0x17, Read),               // IA32_PLATFORM_ID
    (0x1b, 0x1b, Both),               // IA32_APIC_BASE
    (0x3a, 0x3a, Both),               // IA32_FEATURE_CONTROL: Linux locks it, with nothing on
    (0x3b, 0x3b, Both),               // IA32_TSC_ADJUST
    (0x48, 0x48, Both),               // IA32_SPEC_CTRL
    (0x49, 0x49, Write),              // IA32_PRED_CMD
    (0x8b, 0x8b, Both),               // IA32_BIOS_SIGN_ID: revision of the microcode
    (0xce, 0xce, Read),               // MSR_PLATFORM_INFO
    (0x10a, 0x10a, Read),             // IA32_ARCH_CAPABILITIES
    (0x10b, 0x10b, Write),            // IA32_FLUSH_CMD
    (0x122, 0x122, Both),             // IA32_TSX_CTRL: Linux switches off what is not there
    (0x140, 0x140, Both),             // MISC_FEATURES_ENABLES
    (0x174, 0x176, Both),             // IA32_SYSENTER_CS, _ESP, _EIP
    (0x1a0, 0x1a0, Both),             // IA32_MISC_ENABLE
    (0x277, 0x277, Both),             // IA32_PAT
    (0x6e0, 0x6e0, Both),             // IA32_TSC_DEADLINE
    (0xda0, 0xda0, Both),             // IA32_XSS: no state of a supervisor
    (0x4b56_4d00, 0x4b56_4d01, Both), // kvm-clock: wall clock, system time
    (0x4b56_4d04, 0x4b56_4d04, Both), // end of interrupt without an exit
    (0xc000_0080, 0xc000_0084, Both), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xc000_0100, 0xc000_0103, Both), // FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX
    (0xc001_0015, 0xc001_0015, Both), // AMD HWCR
    (0xc001_0055, 0xc001_0055, Read), // AMD interrupt pending: erratum 400 looks at it
    (0xc001_011f, 0xc001_011f, Both), // AMD VIRT_SPEC_CTRL
    (0xc001_1029, 0xc001_1029, Both), // AMD DE_CFG: LFENCE serializes
];

/// First register and number of registers of each bitmap; together they cover the list.
const WINDOWS: [(u32, u32); 7] = [
    (0, 0x280),
    (0x6e0, 8),
    (0xda0, 8),
    (0x4b56_4d00, 8),
    (0xc000_0080, 0x88),
    (0xc001_0000, 0x120),
    (0xc001_1028, 8),
];

/// Whether a guest may read (else write) the register.
#[must_use]
pub fn is_allowed(register: u32, to_read: bool) -> bool {
    READABLE_AND_WRITABLE.iter().any(|(first, last, access)| {
        (*first..=*last).contains(&register)
            && match access {
                Both => true,
                Read => to_read,
                Write => !to_read,
            }
    })
}

/// The bitmaps that `KVM_X86_SET_MSR_FILTER` points to.
#[derive(Debug)]
pub(super) struct Filter {
    windows: Vec<(MsrFilterRangeFlags, u32, u32, Vec<u8>)>,
}

impl Filter {
    pub(super) fn new() -> Self {
        let ways = [
            (MsrFilterRangeFlags::READ, true),
            (MsrFilterRangeFlags::WRITE, false),
        ];
        let windows = WINDOWS.into_iter().flat_map(|(base, count)| {
            ways.map(|(way, to_read)| (way, base, count, bitmap(base, count, to_read)))
        });
        Self {
            windows: windows.collect(),
        }
    }

    /// Ranges for `KVM_X86_SET_MSR_FILTER`: one for each window and each way, at most 16
    /// (`KVM_MSR_FILTER_MAX_RANGES`).
    pub(super) fn ranges(&self) -> Vec<MsrFilterRange<'_>> {
        self.windows
            .iter()
            .map(|(flags, base, msr_count, bitmap)| MsrFilterRange {
                flags: *flags,
                base: *base,
                msr_count: *msr_count,
                bitmap,
            })
            .collect()
    }
}

/// A window's bitmap. Bit 0 of byte 0 is the first register's; a bit that is set allows.
fn bitmap(base: u32, count: u32, to_read: bool) -> Vec<u8> {
    let eight = |first: u32| {
        let bit = |number: u32| u8::from(is_allowed(first + number, to_read)) << number;
        (0..8).map(bit).fold(0, std::ops::BitOr::bitor)
    };
    (base..base + count).step_by(8).map(eight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::KVM_MSR_FILTER_MAX_RANGES;

    /// As `kvm_msr_allowed` decides (Linux `arch/x86/kvm/x86.c`): the first range for this way that holds
    /// the register; none, and the default action denies.
    fn decided(filter: &Filter, register: u32, way: MsrFilterRangeFlags) -> bool {
        let ranges = filter.ranges();
        let holds = |range: &&MsrFilterRange<'_>| {
            let end = range.base + range.msr_count;
            range.flags.contains(way) && (range.base..end).contains(&register)
        };
        ranges.iter().find(holds).is_some_and(|range| {
            let at = register - range.base;
            range.bitmap[at as usize / 8] & 1 << (at % 8) != 0
        })
    }

    #[test]
    fn the_bitmaps_are_the_list() {
        let filter = Filter::new();
        assert!(filter.ranges().len() <= KVM_MSR_FILTER_MAX_RANGES as usize);
        let near = READABLE_AND_WRITABLE
            .iter()
            .flat_map(|(first, last, _)| first.saturating_sub(70)..=last + 70);
        for register in near {
            let read = decided(&filter, register, MsrFilterRangeFlags::READ);
            let write = decided(&filter, register, MsrFilterRangeFlags::WRITE);
            let meant = (is_allowed(register, true), is_allowed(register, false));
            assert_eq!((read, write), meant, "{register:#x}");
        }
    }

    #[test]
    fn what_tells_of_the_host_is_denied() {
        let denied = [
            ("old kvm-clock", 0x11, 0x12),
            (
                "asynchronous page faults, steal time",
                0x4b56_4d02,
                0x4b56_4d03,
            ),
            ("polling, migration", 0x4b56_4d05, 0x4b56_4d08),
            ("counters", 0xc1, 0xc8),
            ("event selectors", 0x186, 0x18d),
            ("fixed counters", 0x309, 0x30b),
            ("AMD's counters", 0xc001_0000, 0xc001_0007),
            ("AMD's core counters", 0xc001_0200, 0xc001_020b),
            ("last branches", 0x1d9, 0x1de),
            ("Hyper-V", 0x4000_0000, 0x4000_0106),
            ("VMX", 0x480, 0x491),
        ];
        for (what, first, last) in denied {
            for register in first..=last {
                let allowed = is_allowed(register, true) || is_allowed(register, false);
                assert!(!allowed, "{what}: {register:#x}");
            }
        }
    }

    #[test]
    fn commands_are_written_and_capabilities_read() {
        assert!(!is_allowed(0x49, true) && is_allowed(0x49, false));
        assert!(is_allowed(0x10a, true) && !is_allowed(0x10a, false));
    }
}

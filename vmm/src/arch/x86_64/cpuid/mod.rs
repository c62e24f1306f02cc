//! The guest's CPUID: the host's, reduced to the list in `allowed.rs` and made that of one processor.

mod allowed;

use std::fmt::Write as _;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::kvm::KvmError;

/// Bits of leaf 1, ECX, that are set for the guest rather than copied from the host's.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EBX: one logical processor, with APIC id 0.
const ONE_PROCESSOR: u32 = 1 << 16;
/// Leaf 6, EAX: the local APIC's timer runs in every power state.
const ARAT: u32 = 1 << 2;
/// Highest subleaf of leaf 7 that is on the list.
const LEAF_7_SUBLEAF_MAX: u32 = 2;
/// The legacy area of XSAVE and its header, bytes.
const XSAVE_BYTES_MIN: u32 = 512 + 64;

/// The CPUID of the guest's one vCPU.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn guest_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let call = "KVM_GET_SUPPORTED_CPUID";
    let host = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::of(call))?;
    // KVM_GET_SUPPORTED_CPUID leaves the timer out, as it needs the in-kernel local APIC.
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    let guest = guest_leaves(host.as_slice(), deadline_timer);
    // The guest's list is no longer than the host's, which came in the same structure.
    CpuId::from_entries(&guest).map_err(|_| KvmError::of(call)(kvm_ioctls::Error::new(libc::E2BIG)))
}

/// Leaves that say what programs can use: maker, model, and the features of leaf 1, of leaf 7, of XSAVE and of AMD's
/// first extended leaf.
const FEATURE_LEAVES: [u32; 5] = [0x0, 0x1, 0x7, 0xd, 0x8000_0001];

/// The features of a CPU in hexadecimal: `leaf.subleaf=eax,ebx,ecx,edx;` for each leaf that has some. Equal for any two
/// VMs of a host, whichever of its processors they run on.
#[must_use]
pub fn features(leaves: &[kvm_cpuid_entry2]) -> String {
    let mut text = String::new();
    for leaf in leaves {
        if FEATURE_LEAVES.contains(&leaf.function) {
            let (function, index) = (leaf.function, leaf.index);
            let [eax, ebx, ecx, edx] = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "{function:x}.{index:x}={eax:x},{ebx:x},{ecx:x},{edx:x};"
            );
        }
    }
    text
}

/// The guest's leaves, made of the host's.
fn guest_leaves(host: &[kvm_cpuid_entry2], deadline_timer: bool) -> Vec<kvm_cpuid_entry2> {
    let mut guest: Vec<_> = host.iter().copied().filter_map(allow).collect();
    let highest = |class: u32| {
        let numbers = guest.iter().map(|leaf| leaf.function);
        numbers.filter(|number| number & 0xf000_0000 == class).max()
    };
    let (basic, extended) = (highest(0), highest(0x8000_0000));
    let saved_bytes = saved_bytes(&guest);
    for leaf in &mut guest {
        match (leaf.function, leaf.index) {
            (0x0, _) => leaf.eax = leaf.eax.min(basic.unwrap_or(0)),
            (0x8000_0000, _) => leaf.eax = leaf.eax.min(extended.unwrap_or(0)),
            (0x4000_0000, _) => leaf.eax = 0x4000_0001,
            (0x1, _) => {
                leaf.ebx |= ONE_PROCESSOR;
                leaf.ecx |= HYPERVISOR | X2APIC;
                set(&mut leaf.ecx, TSC_DEADLINE, deadline_timer);
            }
            (0x6, _) => leaf.eax = ARAT,
            (0x7, 0) => leaf.eax = leaf.eax.min(LEAF_7_SUBLEAF_MAX),
            (0xb | 0x1f, _) => one_processor(leaf),
            (0xd, 0) => leaf.ecx = saved_bytes,
            _ => {}
        }
    }
    guest
}

/// A leaf reduced to its masks on the list; `None` when the list does not have the leaf.
fn allow(mut leaf: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let [eax, ebx, ecx, edx] = allowed::masks(leaf.function, leaf.index)?;
    leaf.eax &= eax;
    leaf.ebx &= ebx;
    leaf.ecx &= ecx;
    leaf.edx &= edx;
    Some(leaf)
}

/// Size of the XSAVE area with every component that is left (leaf 0xd, from subleaf 2: EAX bytes at EBX).
fn saved_bytes(guest: &[kvm_cpuid_entry2]) -> u32 {
    let is_component = |leaf: &&kvm_cpuid_entry2| leaf.function == 0xd && leaf.index >= 2;
    let ends = guest
        .iter()
        .filter(is_component)
        .map(|leaf| leaf.ebx.saturating_add(leaf.eax));
    ends.fold(XSAVE_BYTES_MIN, u32::max)
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on {
        *register | bit
    } else {
        *register & !bit
    };
}

/// Extended topology: level 0 is one thread, level 1 one core, no further level; x2APIC id 0.
fn one_processor(leaf: &mut kvm_cpuid_entry2) {
    let (count, level_type) = match leaf.index {
        0 => (1, 1),
        1 => (1, 2),
        _ => (0, 0),
    };
    (leaf.eax, leaf.ebx, leaf.edx) = (0, count, 0);
    leaf.ecx = leaf.index & 0xff | level_type << 8;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A leaf with every bit set.
    fn full(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        }
    }

    /// A processor that can do everything.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let basic = (0..0x30).flat_map(|leaf| (0..20).map(move |index| full(leaf, index)));
        let others = [0x4000_0000, 0x8000_0000, 0xc000_0000];
        let others = others
            .into_iter()
            .flat_map(|class| (0..0x30).map(move |leaf| full(class + leaf, 0)));
        basic.chain(others).collect()
    }

    fn guest() -> Vec<kvm_cpuid_entry2> {
        guest_leaves(&everything(), true)
    }

    /// The leaf, or zeros as the guest would read.
    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        let is_it = |leaf: &kvm_cpuid_entry2| leaf.function == function && leaf.index == index;
        let none = kvm_cpuid_entry2::default();
        guest().into_iter().find(is_it).unwrap_or(none)
    }

    #[test]
    fn the_timers_are_as_linux_needs_them_without_a_pit() {
        assert_eq!(leaf(1, 0).ecx & TSC_DEADLINE, TSC_DEADLINE);
        let without = guest_leaves(&[full(1, 0)], false);
        assert_eq!(without[0].ecx & TSC_DEADLINE, 0);
        assert_eq!(leaf(6, 0).eax, ARAT);
        assert_eq!(leaf(0x8000_0007, 0).edx, 0, "invariant TSC");
    }

    /// Leaf, register, bit: what reaches or measures what is outside of the guest.
    #[test]
    fn what_is_not_named_is_not_there() {
        let is_set = |(function, index, register, bit): (u32, u32, usize, u32)| {
            let leaf = leaf(function, index);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx][register] & 1 << bit != 0
        };
        let named = [
            ("MONITOR", (1, 0, 2, 3)),
            ("VMX", (1, 0, 2, 5)),
            ("PDCM", (1, 0, 2, 15)),
            ("MTRR", (1, 0, 3, 12)),
            ("HTT", (1, 0, 3, 28)),
            ("HLE", (7, 0, 1, 4)),
            ("RTM", (7, 0, 1, 11)),
            ("SGX", (7, 0, 1, 2)),
            ("Intel PT", (7, 0, 1, 25)),
            ("WAITPKG", (7, 0, 2, 5)),
            ("AMX", (7, 0, 3, 24)),
            ("SVM", (0x8000_0001, 0, 2, 2)),
            ("PERFCTR_CORE", (0x8000_0001, 0, 2, 23)),
            ("MWAITX", (0x8000_0001, 0, 2, 29)),
            ("RDPRU", (0x8000_0008, 0, 1, 4)),
        ];
        for (name, bit) in named {
            assert!(!is_set(bit), "{name}");
        }
        let gone = [
            0xa,
            0xf,
            0x10,
            0x12,
            0x14,
            0x1d,
            0x8000_000a,
            0x8000_001f,
            0x8000_0022,
        ];
        for function in gone {
            assert!(
                guest().iter().all(|leaf| leaf.function != function),
                "{function:#x}"
            );
        }
        assert!(guest().iter().all(|leaf| leaf.function < 0xc000_0000));
    }

    /// What wasmtime's compiler asks for (Cranelift's x86 settings), as leaf, register, bit.
    #[test]
    fn what_artifacts_are_compiled_for_stays() {
        let ecx = [0, 9, 12, 13, 19, 20, 23, 26, 28];
        assert!(ecx.iter().all(|bit| leaf(1, 0).ecx & 1 << bit != 0));
        let ebx = [3, 5, 8, 16, 17, 31];
        assert!(ebx.iter().all(|bit| leaf(7, 0).ebx & 1 << bit != 0));
        assert_eq!(leaf(7, 0).ecx & (1 << 1 | 1 << 12), 1 << 1 | 1 << 12);
        assert_eq!(leaf(0x8000_0001, 0).ecx & 1 << 5, 1 << 5);
        assert_eq!(leaf(0xd, 0).eax, 0xe7, "XCR0");
    }

    /// The tables of one host differ in the id of the processor that made them, and in nothing else.
    #[test]
    fn features_are_those_of_the_host_and_not_of_one_processor() {
        let of = |host: &[kvm_cpuid_entry2]| features(&guest_leaves(host, true));
        let host = |apic_id: u32, avx2: u32| {
            let one = kvm_cpuid_entry2 {
                ebx: apic_id << 24 | 8 << 8,
                ..full(1, 0)
            };
            let seven = kvm_cpuid_entry2 {
                ebx: avx2 << 5,
                ..full(7, 0)
            };
            [full(0, 0), one, seven, full(0xb, 0), full(0x8000_0001, 0)]
        };
        assert_eq!(of(&host(0, 1)), of(&host(7, 1)));
        assert_ne!(of(&host(0, 1)), of(&host(0, 0)));
        let largest = of(&everything());
        assert!(largest.len() < 2048, "{} bytes", largest.len());
    }

    #[test]
    fn there_is_one_processor() {
        assert_eq!(leaf(1, 0).ebx >> 16, 1);
        let levels = (0..3).map(|index| leaf(0xb, index));
        let levels: Vec<_> = levels.map(|leaf| (leaf.ebx, leaf.ecx)).collect();
        assert_eq!(levels, [(1, 0x100), (1, 0x201), (0, 2)]);
        assert_eq!(leaf(4, 3).eax, 0x3fff);
    }

    #[test]
    fn kvm_offers_its_clock_and_little_else() {
        let features = leaf(0x4000_0001, 0);
        assert_eq!((features.eax, features.edx), (0x0100_004a, 0));
        let signature = leaf(0x4000_0000, 0);
        assert_eq!((signature.eax, signature.ebx), (0x4000_0001, u32::MAX));
    }

    #[test]
    fn the_highest_leaves_are_the_last_ones_there() {
        assert_eq!(
            (leaf(0, 0).eax, leaf(0x8000_0000, 0).eax),
            (0x1f, 0x8000_0021)
        );
        let small = guest_leaves(&[full(0, 0), full(1, 0), full(0xa, 0)], true);
        assert_eq!((small.len(), small[0].eax), (2, 1));
    }

    #[test]
    fn the_saved_state_is_as_long_as_what_is_left_of_it() {
        let component = |index, bytes, at| kvm_cpuid_entry2 {
            eax: bytes,
            ebx: at,
            ..full(0xd, index)
        };
        // Protection keys (9) lie behind AVX-512 (7) and are not on the list.
        let host = [
            full(0xd, 0),
            component(2, 256, 576),
            component(7, 1024, 1664),
            component(9, 8, 2688),
        ];
        let guest = guest_leaves(&host, true);
        assert_eq!((guest.len(), guest[0].ecx), (3, 2688));
        assert_eq!(guest_leaves(&[full(0xd, 0)], true)[0].ecx, XSAVE_BYTES_MIN);
    }

    proptest! {
        /// No leaf but the listed ones, and of them no bit that the host does not have or the list does
        /// not name, but for what is ours.
        #[test]
        fn a_guest_has_no_more_than_host_and_list(
            function in prop_oneof![0_u32..64, 0x8000_0000_u32..0x8000_0040, any::<u32>()],
            index in 0_u32..32, eax: u32, ebx: u32, ecx: u32, edx: u32,
        ) {
            let host = kvm_cpuid_entry2 { eax, ebx, ecx, edx, ..full(function, index) };
            let guest = guest_leaves(&[host], true);
            let Some(masks) = allowed::masks(function, index) else {
                prop_assert!(guest.is_empty());
                return Ok(());
            };
            let leaf = guest[0];
            prop_assert_eq!(leaf.edx & !(edx & masks[3]), 0);
            let is_ours = matches!(function, 0 | 1 | 6 | 7 | 0xb | 0xd | 0x1f)
                || [0x8000_0000, 0x4000_0000].contains(&function);
            if !is_ours {
                prop_assert_eq!(leaf.eax & !(eax & masks[0]), 0);
                prop_assert_eq!(leaf.ebx & !(ebx & masks[1]), 0);
                prop_assert_eq!(leaf.ecx & !(ecx & masks[2]), 0);
            }
        }
    }
}

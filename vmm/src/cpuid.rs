//! What the guest's processor looks like: the host's, filtered.
//!
//! Numbers are from Intel's SDM vol. 2A "CPUID", AMD's APM vol. 3 appendix E, and Linux
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::vm::VmError;

/// Leaf 1, ECX.
const DEBUG_STORE_64: u32 = 1 << 2;
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PERF_CAPABILITIES: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EBX: initial APIC id and number of logical processors.
const APIC_ID_AND_COUNT: u32 = 0xffff_0000;
const ONE_PROCESSOR: u32 = 1 << 16;
/// Leaf 1, EDX.
const DEBUG_STORE: u32 = 1 << 21;
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 6, EAX: the local APIC's timer runs in every power state.
const ARAT: u32 = 1 << 2;
/// Leaf 7, EBX.
const SGX: u32 = 1 << 2;
/// Leaf 0x80000001, ECX.
const SVM: u32 = 1 << 2;
const PERF_COUNTERS_CORE_AND_NB: u32 = 1 << 23 | 1 << 24;
const PERF_COUNTERS_LLC: u32 = 1 << 28;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 0x80000007, EDX.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000008, ECX: number of cores, size of the APIC id.
const CORES_AND_ID_SIZE: u32 = 0xf0ff;
/// Leaf 0x40000001, EAX: kvm-clock (old and new MSRs), no I/O delay, end-of-interrupt without an
/// exit, and kvm-clock stable over CPUs. What is not named here is not offered.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 24;
/// Leaves 4 and 0x8000001d, EAX: how many share this cache, how many cores there are.
const CACHE_SHARING: u32 = 0xffff_c000;

/// The CPUID of the guest's one vCPU.
///
/// # Errors
/// [`VmError::Kvm`].
pub fn guest_cpuid(kvm: &Kvm) -> Result<CpuId, VmError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(VmError::of("KVM_GET_SUPPORTED_CPUID"))?;
    // KVM_GET_SUPPORTED_CPUID leaves the timer out, as it needs the in-kernel local APIC.
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        filter(entry, deadline_timer);
    }
    Ok(cpuid)
}

/// Makes one leaf that of the guest.
fn filter(leaf: &mut kvm_cpuid_entry2, deadline_timer: bool) {
    match leaf.function {
        0x1 => {
            leaf.ebx = leaf.ebx & !APIC_ID_AND_COUNT | ONE_PROCESSOR;
            // No nested VMs, no performance counters, no monitor (it would idle the host's core).
            leaf.ecx &= !(VMX | MONITOR | DEBUG_STORE_64 | PERF_CAPABILITIES);
            leaf.ecx |= HYPERVISOR | X2APIC;
            set(&mut leaf.ecx, TSC_DEADLINE, deadline_timer);
            leaf.edx &= !(HYPER_THREADING | DEBUG_STORE);
        }
        0x4 | 0x8000_001d => leaf.eax &= !CACHE_SHARING,
        0x6 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (ARAT, 0, 0, 0),
        0x7 if leaf.index == 0 => leaf.ebx &= !SGX,
        // Performance counters, SGX, processor trace; SVM, AMD performance counters, topology that
        // only several CPUs have.
        0xa | 0x12 | 0x14 | 0x8000_000a | 0x8000_0022 | 0x8000_0026 => clear(leaf),
        0xb | 0x1f => one_processor(leaf),
        0x4000_0001 => (leaf.eax, leaf.edx) = (leaf.eax & KVM_FEATURES, 0),
        0x8000_0001 => {
            leaf.ecx &= !(SVM | PERF_COUNTERS_CORE_AND_NB | PERF_COUNTERS_LLC);
            leaf.ecx &= !TOPOLOGY_EXTENSIONS;
        }
        // Else Linux would take the raw TSC for its clock, which jumps at pause and restore.
        0x8000_0007 => leaf.edx &= !INVARIANT_TSC,
        0x8000_0008 => leaf.ecx &= !CORES_AND_ID_SIZE,
        // APIC id, unit and node of the one processor.
        0x8000_001e => clear(leaf),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on {
        *register | bit
    } else {
        *register & !bit
    };
}

fn clear(leaf: &mut kvm_cpuid_entry2) {
    (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
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

    fn filtered(function: u32, index: u32, deadline_timer: bool) -> kvm_cpuid_entry2 {
        let mut leaf = kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        };
        filter(&mut leaf, deadline_timer);
        leaf
    }

    #[test]
    fn the_timers_are_as_linux_needs_them_without_a_pit() {
        assert_eq!(filtered(1, 0, true).ecx & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!(filtered(1, 0, false).ecx & TSC_DEADLINE, 0);
        assert_eq!(filtered(6, 0, true).eax, ARAT);
        assert_eq!(filtered(0x8000_0007, 0, true).edx & INVARIANT_TSC, 0);
    }

    #[test]
    fn no_nested_vms() {
        assert_eq!(filtered(1, 0, true).ecx & VMX, 0);
        assert_eq!(filtered(0x8000_0001, 0, true).ecx & SVM, 0);
        assert_eq!(filtered(0x8000_000a, 0, true).eax, 0);
    }

    #[test]
    fn there_is_one_processor() {
        assert_eq!(filtered(1, 0, true).ebx >> 16, 1);
        let levels: Vec<_> = (0..3).map(|index| filtered(0xb, index, true)).collect();
        assert_eq!(
            levels.iter().map(|leaf| leaf.ebx).collect::<Vec<_>>(),
            [1, 1, 0]
        );
        assert_eq!(
            levels.iter().map(|leaf| leaf.ecx).collect::<Vec<_>>(),
            [0x100, 0x201, 2]
        );
        assert_eq!(filtered(4, 3, true).eax, 0x3fff);
    }

    #[test]
    fn kvm_offers_its_clock_and_little_else() {
        let features = filtered(0x4000_0001, 0, true);
        assert_eq!((features.eax, features.edx), (0x0100_004b, 0));
        assert_eq!(filtered(0x4000_0000, 0, true).ebx, u32::MAX);
    }
}

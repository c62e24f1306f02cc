//! The part of the host's CPUID that a guest gets: leaf by leaf, register by register, bit by bit.
//!
//! A leaf that is not in the table does not exist for the guest, and a bit that is not in its leaf's masks
//! is 0 there, whatever processor and kernel come next. The table has what the guest's kernel starts
//! with, what wasmtime compiles for, and what a kernel can protect itself by. Left out, as long as nobody
//! needs them, are what reaches or measures what is outside of the guest (performance counters, resource
//! control, processor trace, MONITOR, UMWAIT), what makes a machine in the machine (VMX, SVM, SGX, SEV),
//! transactions (TSX), and what only costs state (AMX, protection keys, shadow stacks).
//!
//! Numbers are from Intel's SDM vol. 2A "CPUID", AMD's APM vol. 3 appendix E, and Linux
//! arch/x86/include/asm/cpufeatures.h, Documentation/virt/kvm/x86/cpuid.rst.

/// Bits of EAX, EBX, ECX and EDX.
pub(super) type Masks = [u32; 4];

/// Subleaves (ECX at the instruction) that a row is for.
#[derive(Clone, Copy, Debug)]
enum Subleaf {
    One(u32),
    /// Every subleaf that the host has.
    Any,
}
use Subleaf::{Any, One};

const ALL: u32 = u32::MAX;
const WHOLE: Masks = [ALL; 4];

/// The mask with one bit set for each number.
const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let (mut bits, mut at) = (0, 0);
    while at < N {
        bits |= 1 << numbers[at];
        at += 1;
    }
    bits
}

/// State that XSAVE keeps: x87, SSE, AVX, and the three of AVX-512.
pub(super) const XCR0: u32 = bits([0, 1, 2, 5, 6, 7]);

/// Leaf 0x40000001, EAX: no I/O delay, kvm-clock by its new MSRs, end-of-interrupt without an exit, and
/// kvm-clock stable over CPUs.
pub(super) const KVM_FEATURES: u32 = bits([1, 3, 6, 24]);

/// SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC deadline,
/// AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND, hypervisor.
const LEAF_1_ECX: u32 = bits([
    0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
]);
/// FPU, VME, DE, PSE, TSC, MSR, PAE, CMPXCHG8B, APIC, SYSENTER, PGE, CMOV, PAT, PSE-36, CLFLUSH, MMX,
/// FXSR, SSE, SSE2, self snoop. Not: machine checks, MTRRs, hyper-threading.
const LEAF_1_EDX: u32 = bits([
    0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26, 27,
]);
/// FSGSBASE, TSC_ADJUST, BMI1, AVX2, FDP_EXCPTN_ONLY, SMEP, BMI2, ERMS, INVPCID, ZERO_FCS_FDS, AVX-512
/// F, DQ, RDSEED, ADX, SMAP, AVX-512 IFMA, CLFLUSHOPT, CLWB, AVX-512 CD, SHA, AVX-512 BW, VL.
const LEAF_7_EBX: u32 = bits([
    0, 1, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31,
]);
/// AVX-512 VBMI, UMIP, AVX-512 VBMI2, GFNI, VAES, VPCLMULQDQ, AVX-512 VNNI, BITALG, VPOPCNTDQ, RDPID,
/// CLDEMOTE, MOVDIRI, MOVDIR64B.
const LEAF_7_ECX: u32 = bits([1, 2, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]);
/// FSRM, AVX-512 VP2INTERSECT, MD_CLEAR, SERIALIZE, AVX-512 FP16; SPEC_CTRL, STIBP, FLUSH_L1D,
/// ARCH_CAPABILITIES, SSBD.
const LEAF_7_EDX: u32 = bits([4, 8, 10, 14, 23, 26, 27, 28, 29, 31]);
/// AVX-VNNI, AVX-512 BF16, CMPCCXADD, fast string operations, AVX-IFMA.
const LEAF_7_1_EAX: u32 = bits([4, 5, 7, 10, 11, 12, 23]);
/// Features of AVX and prefetch: AVX-VNNI-INT8, AVX-NE-CONVERT, PREFETCHI.
const LEAF_7_1_EDX: u32 = bits([4, 5, 14]);
/// Controls in SPEC_CTRL, and one immunity: PSFD, IPRED, RRSBA, DDPD_U, BHI, MCDT_NO.
const LEAF_7_2_EDX: u32 = bits([0, 1, 2, 3, 4, 5]);
/// XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES.
const LEAF_D_1_EAX: u32 = bits([0, 1, 2, 3]);
/// LAHF, CR8 in 32-bit mode, LZCNT, SSE4A, misaligned SSE, PREFETCHW, XOP, FMA4, TBM.
const LEAF_8000_0001_ECX: u32 = bits([0, 4, 5, 6, 7, 8, 11, 16, 21]);
/// The bits of leaf 1, EDX, that AMD repeats, and: SYSCALL, NX, MMXEXT, FXSR_OPT, 1 GiB pages, RDTSCP, long mode,
/// 3DNow!.
const LEAF_8000_0001_EDX: u32 = bits([
    0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 20, 22, 23, 24, 25, 26, 27, 29, 30, 31,
]);
/// CLZERO, XSAVEERPTR, WBNOINVD; IBPB, IBRS, STIBP and how they are best used, SSBD, VIRT_SSBD, SSB_NO,
/// PSFD, BTC_NO, IBPB_RET.
const LEAF_8000_0008_EBX: u32 = bits([0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 29, 30]);
/// NO_NESTED_DATA_BP, LFENCE_RDTSC, VERW_CLEAR, NULL_SEL_CLR_BASE, AUTOIBRS, fast string operations,
/// PREFETCHI, SBPB, IBPB_BRTYPE, SRSO_NO, SRSO_USER_KERNEL_NO.
const LEAF_8000_0021_EAX: u32 = bits([0, 2, 5, 6, 8, 10, 11, 20, 27, 28, 29, 30]);
/// Immunity to transient scheduler attacks: TSA_SQ_NO, TSA_L1_NO.
const LEAF_8000_0021_ECX: u32 = bits([1, 2]);

/// Rows of leaf, subleaves and masks.
const TABLE: &[(u32, Subleaf, Masks)] = &[
    // Highest leaf and vendor.
    (0x0, Any, WHOLE),
    // Signature; size of CLFLUSH. The rest of EBX is ours.
    (0x1, Any, [ALL, 0xff00, LEAF_1_ECX, LEAF_1_EDX]),
    // Intel's caches, by descriptors and by parameters without who shares them.
    (0x2, Any, WHOLE),
    (0x4, Any, [0x3fff, ALL, ALL, ALL]),
    // Power: ours.
    (0x6, Any, [0, 0, 0, 0]),
    (0x7, One(0), [ALL, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX]),
    (0x7, One(1), [LEAF_7_1_EAX, 0, 0, LEAF_7_1_EDX]),
    (0x7, One(2), [0, 0, 0, LEAF_7_2_EDX]),
    // Topology: ours.
    (0xb, Any, [0, 0, 0, 0]),
    (0x1f, Any, [0, 0, 0, 0]),
    // Saved state; no supervisor's. Components have a row for each bit of XCR0.
    (0xd, One(0), [XCR0, ALL, ALL, 0]),
    (0xd, One(1), [LEAF_D_1_EAX, ALL, 0, 0]),
    (0xd, One(2), WHOLE),
    (0xd, One(5), WHOLE),
    (0xd, One(6), WHOLE),
    (0xd, One(7), WHOLE),
    // KVM's signature and features.
    (0x4000_0000, Any, WHOLE),
    (0x4000_0001, Any, [KVM_FEATURES, 0, 0, 0]),
    (0x8000_0000, Any, WHOLE),
    (
        0x8000_0001,
        Any,
        [ALL, 0, LEAF_8000_0001_ECX, LEAF_8000_0001_EDX],
    ),
    // Brand string, AMD's caches and TLBs.
    (0x8000_0002, Any, WHOLE),
    (0x8000_0003, Any, WHOLE),
    (0x8000_0004, Any, WHOLE),
    (0x8000_0005, Any, WHOLE),
    (0x8000_0006, Any, WHOLE),
    // Not the invariant TSC: Linux would take it for its clock, which then jumps at pause and restore.
    (0x8000_0007, Any, [0, 0, 0, 0]),
    // Address sizes.
    (0x8000_0008, Any, [0x00ff_ffff, LEAF_8000_0008_EBX, 0, 0]),
    (0x8000_0019, Any, [ALL, ALL, 0, 0]),
    // How wide the FPU is.
    (0x8000_001a, Any, [0b111, 0, 0, 0]),
    (0x8000_001d, Any, [0x3fff, ALL, ALL, ALL]),
    (
        0x8000_0021,
        Any,
        [LEAF_8000_0021_EAX, 0, LEAF_8000_0021_ECX, 0],
    ),
];

/// The masks of this leaf and subleaf; `None` when a guest has no such leaf.
pub(super) fn masks(function: u32, index: u32) -> Option<Masks> {
    let is_asked = |(leaf, subleaf, _): &&(u32, Subleaf, Masks)| {
        *leaf == function
            && match subleaf {
                One(number) => *number == index,
                Any => true,
            }
    };
    TABLE.iter().find(is_asked).map(|(_, _, masks)| *masks)
}

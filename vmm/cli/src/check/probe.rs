//! The second guest of the check: which registers and counters ring 0 gets from KVM without a list naming them.
//!
//! The guest walks a table of probes that the host wrote for it, one instruction each (RDMSR, WRMSR of 0 or
//! RDPMC), and notes beside each probe whether the instruction raised an exception. Ring 0 is where a guest is
//! that has taken over its own kernel.
#![allow(unsafe_code, reason = "machine code, found by its labels")]

use kvm_bindings::kvm_regs;
use kvm_ioctls::Kvm;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use wasmvm_vmm::arch::x86_64::offer::{MSRS, is_allowed};

use super::Finding;
use super::guest::{self, GuestError, RunEnd};
use super::program::{self, Stage};

/// A probe: one instruction and its result, as guest and host share it in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Probe {
    kind: u32,
    /// ECX: which register or counter.
    number: u32,
    /// Number of the exception that the instruction raised; 0 for none.
    exception: u32,
    /// EAX after the instruction.
    value: u32,
}

// SAFETY: only `u32`s in C order: no padding, every bit pattern is a value.
unsafe impl ByteValued for Probe {}

const READ: u32 = 1;
const WRITE: u32 = 2;
const COUNTER: u32 = 3;

/// Address of the table of probes, behind the program, and the most probes in the table.
const TABLE_ADDRESS: u64 = 0x2_0000;
const PROBES_MAX: usize = 256;

const GENERAL_PROTECTION: u32 = 13;

/// Registers that are on no list, and each of which KVM gives to guests unless a filter keeps it out: old
/// kvm-clock, asynchronous page faults, steal time, polling, migration; counters and event selectors of Intel
/// and AMD; last branches, MTRRs, machine checks.
const FOREIGN_MSRS: [u32; 18] = [
    0x11,
    0x12,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d05,
    0x4b56_4d06,
    0x4b56_4d07,
    0x4b56_4d08,
    0xc1,
    0x186,
    0xc001_0000,
    0xc001_0004,
    0xc001_0200,
    0xc001_0201,
    0x1d9,
    0xfe,
    0x179,
    0x17a,
];
/// Performance counters for RDPMC: two general ones and a fixed one.
const COUNTERS: [u32; 3] = [0, 1, 0x4000_0000];
/// MSRs that Linux reads on every processor, in the guest: the TSC, EFER, kvm-clock.
const OWN_MSRS: [u32; 3] = [0x10, 0xc000_0080, 0x4b56_4d01];

core::arch::global_asm!(
    ".pushsection .rodata.wasmvm_probe, \"a\"",
    ".globl wasmvm_probe_start, wasmvm_probe_stubs, wasmvm_probe_end",
    ".hidden wasmvm_probe_start, wasmvm_probe_stubs, wasmvm_probe_end",
    // ESI: the table, EBP: how many are left. Every instruction that is tried is two bytes long.
    "wasmvm_probe_start:",
    "    mov edi, dword ptr [rsi]",
    "    mov ecx, dword ptr [rsi + 4]",
    "    xor eax, eax",
    "    xor edx, edx",
    "    cmp edi, {read}",
    "    je 2f",
    "    cmp edi, {write}",
    "    je 3f",
    "    rdpmc",
    "    jmp 4f",
    "2:  rdmsr",
    "    jmp 4f",
    "3:  wrmsr",
    "4:  mov dword ptr [rsi + 12], eax",
    "    add rsi, 16",
    "    dec ebp",
    "    jnz wasmvm_probe_start",
    "5:  mov al, {end}",
    "    out {port}, al",
    "6:  jmp 6b",
    ".balign {stub_bytes}, 0x90",
    "wasmvm_probe_stubs:",
    ".set wasmvm_probe_vector, 0",
    ".rept {vectors}",
    "    mov dword ptr [rsi + 8], wasmvm_probe_vector",
    "    jmp 7f",
    "    .balign {stub_bytes}, 0x90",
    "    .set wasmvm_probe_vector, wasmvm_probe_vector + 1",
    ".endr",
    // #GP has an error code, #UD has none; both skip what was tried. Any other is the end.
    "7:  cmp dword ptr [rsi + 8], {general_protection}",
    "    jne 8f",
    "    add rsp, 8",
    "    jmp 9f",
    "8:  cmp dword ptr [rsi + 8], {invalid_opcode}",
    "    jne 5b",
    "9:  add qword ptr [rsp], 2",
    "    iretq",
    "wasmvm_probe_end:",
    ".popsection",
    read = const READ,
    write = const WRITE,
    end = const Stage::Exception as u8,
    port = const program::STAGE_PORT,
    stub_bytes = const program::STUB_BYTES,
    vectors = const program::VECTORS,
    general_protection = const GENERAL_PROTECTION,
    invalid_opcode = const 6,
);

unsafe extern "C" {
    static wasmvm_probe_start: u8;
    static wasmvm_probe_stubs: u8;
    static wasmvm_probe_end: u8;
}

/// The program's machine code.
fn code() -> &'static [u8] {
    let start = &raw const wasmvm_probe_start;
    let bytes = (&raw const wasmvm_probe_end).addr() - start.addr();
    // SAFETY: both labels are in the section above, the second behind the first; it is read-only.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

fn load(memory: &GuestMemoryMmap, probes: &[Probe]) -> Result<(), GuestMemoryError> {
    let start = &raw const wasmvm_probe_start;
    let stubs = (&raw const wasmvm_probe_stubs).addr() - start.addr();
    program::load_tables(memory, program::CODE_ADDRESS + stubs as u64)?;
    memory.write_slice(code(), GuestAddress(program::CODE_ADDRESS))?;
    for (index, probe) in (0..).zip(probes) {
        memory.write_obj(*probe, address(index))?;
    }
    Ok(())
}

fn address(index: u64) -> GuestAddress {
    GuestAddress(TABLE_ADDRESS + index * size_of::<Probe>() as u64)
}

/// Runs the probes in a guest of `kvm`; returns the probes as the guest left them, and the end of the run.
///
/// # Errors
/// [`GuestError`].
pub(super) fn run(kvm: Kvm, probes: &[Probe]) -> Result<(Vec<Probe>, RunEnd), GuestError> {
    let probes = probes.get(..PROBES_MAX).unwrap_or(probes);
    let registers = kvm_regs {
        rip: program::CODE_ADDRESS,
        rsi: TABLE_ADDRESS,
        rbp: probes.len() as u64,
        ..program::registers()
    };
    let (memory, _, end) = guest::execute(kvm, &registers, |memory| load(memory, probes))?;
    let indices = (0..).zip(probes).map(|(index, _)| index);
    let made = indices.map(|index| memory.read_obj(address(index)));
    Ok((
        made.collect::<Result<_, _>>()
            .map_err(GuestError::Program)?,
        end,
    ))
}

/// All probes of the check: each counter, then each MSR read, then each foreign MSR written.
#[must_use]
pub(super) fn probes() -> Vec<Probe> {
    let probe = |kind| {
        move |number| Probe {
            kind,
            number,
            ..Probe::default()
        }
    };
    let foreign = FOREIGN_MSRS.into_iter();
    let reads = OWN_MSRS.into_iter().chain(foreign.clone());
    let counters = COUNTERS.into_iter().map(probe(COUNTER));
    let msrs = reads.map(probe(READ)).chain(foreign.map(probe(WRITE)));
    counters.chain(msrs).collect()
}

/// Findings: one for each kind of probe, or a single one when the guest did not finish.
#[must_use]
pub(super) fn findings(made: &[Probe], end: &RunEnd) -> Vec<Finding> {
    if *end != RunEnd::Finished {
        return vec![Finding::bad(format!(
            "the guest that tries what KVM offers ended by {end:?}"
        ))];
    }
    let is_own = |probe: &&Probe| probe.kind == READ && is_allowed(probe.number, true);
    let numbers = |wanted: &dyn Fn(&Probe) -> bool| {
        let wanted = made.iter().filter(|probe| wanted(probe));
        let numbers: Vec<_> = wanted.map(|probe| format!("{:#x}", probe.number)).collect();
        numbers.join(", ")
    };
    let reached = |probe: &Probe| probe.exception == 0;
    let counters = numbers(&|probe| probe.kind == COUNTER && reached(probe));
    let read = numbers(&|probe| probe.kind == READ && !is_own(&probe) && reached(probe));
    let written = numbers(&|probe| probe.kind == WRITE && reached(probe));
    let refused = numbers(&|probe| is_own(&probe) && !reached(probe));
    vec![
        kept_out(
            &counters,
            "ring 0 has no performance counter",
            "ring 0 reads the performance counters",
        ),
        kept_out(
            &read,
            &format!(
                "ring 0 reads the {} kinds of MSR on the list and no other",
                MSRS.len()
            ),
            "ring 0 reads MSRs that are on no list:",
        ),
        kept_out(
            &written,
            "ring 0 writes no MSR that is on no list",
            "ring 0 writes MSRs that are on no list:",
        ),
        if refused.is_empty() {
            Finding::good("ring 0 has the MSRs that Linux cannot do without")
        } else {
            Finding::bad(format!(
                "ring 0 is refused the MSRs {refused}, which Linux needs"
            ))
        },
    ]
}

fn kept_out(reached: &str, good: &str, weak: &str) -> Finding {
    if reached.is_empty() {
        Finding::good(good)
    } else {
        Finding::weak(format!("{weak} {reached}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmvm_vmm::memory::allocate;

    /// As on a KVM that keeps to the list.
    fn made() -> Vec<Probe> {
        let mut made = probes();
        for probe in &mut made {
            if probe.kind != READ || !is_allowed(probe.number, true) {
                probe.exception = GENERAL_PROTECTION;
            }
        }
        made
    }

    fn sentences(made: &[Probe]) -> Vec<String> {
        let findings = findings(made, &RunEnd::Finished).into_iter();
        findings.map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn what_is_tried_is_on_the_list_or_is_not() {
        for register in FOREIGN_MSRS {
            assert!(
                !is_allowed(register, true) && !is_allowed(register, false),
                "{register:#x}"
            );
        }
        assert!(OWN_MSRS.iter().all(|register| is_allowed(*register, true)));
        assert!(probes().len() <= PROBES_MAX);
    }

    #[test]
    fn a_kvm_that_keeps_to_the_list_is_fine() {
        assert!(
            sentences(&made())
                .iter()
                .all(|sentence| sentence.starts_with("ok "))
        );
    }

    #[test]
    fn what_ring_0_reaches_is_named() {
        let mut steals = made();
        for probe in &mut steals {
            if probe.kind != COUNTER && probe.number == 0x4b56_4d03 {
                probe.exception = 0;
            }
        }
        let said = sentences(&steals);
        assert_eq!(
            said[1],
            "low ring 0 reads MSRs that are on no list: 0x4b564d03."
        );
        assert_eq!(
            said[2],
            "low ring 0 writes MSRs that are on no list: 0x4b564d03."
        );
        let mut strict = made();
        strict
            .iter_mut()
            .for_each(|probe| probe.exception = GENERAL_PROTECTION);
        assert!(sentences(&strict)[3].starts_with("BAD "));
    }

    #[test]
    fn every_stub_has_its_vector_and_the_program_fits() {
        let memory = allocate(32, false).unwrap();
        load(&memory, &probes()).unwrap();
        assert!(program::CODE_ADDRESS + (code().len() as u64) < TABLE_ADDRESS);
        let stubs = (&raw const wasmvm_probe_stubs).addr() - (&raw const wasmvm_probe_start).addr();
        for vector in 0..program::VECTORS {
            // mov dword ptr [rsi + disp8], imm32: the vector is the last field.
            let at = stubs as u64 + vector * program::STUB_BYTES + 3;
            let noted: u32 = memory
                .read_obj(GuestAddress(program::CODE_ADDRESS + at))
                .unwrap();
            assert_eq!(u64::from(noted), vector);
        }
        let first: Probe = memory.read_obj(address(0)).unwrap();
        assert_eq!(first, probes()[0]);
    }
}

//! The guest of the check: some thirty instructions that do once what Linux does all the time.
//!
//! ```text
//! ring 0   CPUID, a counted loop (timed by the host), IRETQ
//! ring 3   note CS, CPUID, SYSCALL ──► ring 0: note CS, SYSRETQ
//! ring 3   note CS, INT3           ──► ring 0 through the IDT: note vector and CS
//! ```
//!
//! The guest reports its progress to the host by writing a [`Stage`] to [`STAGE_PORT`], and leaves what it saw in
//! [`Notes`] at [`NOTES_ADDRESS`]. One identity-mapped 2 MiB page, open to ring 3, holds code, tables and notes.
#![allow(unsafe_code, reason = "machine code, found by its labels")]

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use wasmvm_vmm::arch::x86_64::long_mode::{CODE, DATA, LongMode, RFLAGS_RESERVED};

/// I/O port that the guest writes its stage to.
pub(super) const STAGE_PORT: u16 = 0xe0;
/// Guest-physical address of the guest's [`Notes`].
const NOTES_ADDRESS: u64 = 0x4000;
/// Instructions in one round of the loop.
pub(super) const LOOP_INSTRUCTIONS: u32 = 2 * LOOP_COUNT;
/// CPUID leaf in which the host hides [`BRAND`]: the end of the brand string.
pub(super) const BRAND_LEAF: u32 = 0x8000_0004;
/// Value of EAX in [`BRAND_LEAF`] that the host sets and the guest has to read.
pub(super) const BRAND: u32 = u32::from_le_bytes(*b"wasm");
/// `#BP`, which INT3 raises.
pub(super) const BREAKPOINT: u32 = 3;

const LOOP_COUNT: u32 = 100_000;
const LOOP_ROUNDS: u32 = 5;

const GDT_ADDRESS: u64 = 0x1000;
const IDT_ADDRESS: u64 = 0x2000;
const TSS_ADDRESS: u64 = 0x3000;
const PAGE_TABLES: [u64; 3] = [0x5000, 0x6000, 0x7000];
const KERNEL_STACK: u64 = 0x9000;
const USER_STACK: u64 = 0xa000;
/// Guest-physical address of the program and of its first instruction.
pub(super) const CODE_ADDRESS: u64 = 0x1_0000;

/// Ring-0 code, ring-0 data, (32-bit ring-3 code, which SYSRET only counts from,) ring-3 data, ring-3
/// code; the two of 16 bytes at the end are the task state segment's.
const GDT: [u64; 8] = [
    0,
    CODE,
    DATA,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_3000_0067,
    0,
];
const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_BASE: u16 = 0x18 | 3;
const USER_DATA: u16 = 0x20 | 3;
const USER_CODE: u16 = 0x28 | 3;
const TASK: u16 = 0x30;
const TSS_BYTES: u32 = 104;
const TSS_RSP0_OFFSET: u64 = 4;

/// Number of exceptions that have a stub, and the size of a stub.
pub(super) const VECTORS: u64 = 32;
pub(super) const STUB_BYTES: u64 = 16;
/// Present, 64-bit interrupt gate; the second one open to ring 3.
const GATE: u64 = 0x8e00;
const USER_GATE: u64 = 0xee00;

const PRESENT_WRITABLE_USER: u64 = 0b111;
const LARGE_PAGE: u64 = 1 << 7;
const LONG_MODE: LongMode = LongMode {
    code: KERNEL_CODE,
    data: KERNEL_DATA,
    gdt_address: GDT_ADDRESS,
    gdt_entries: 8,
    page_tables: PAGE_TABLES[0],
};
const EFER_SYSTEM_CALL: u64 = 1;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;

/// Progress of the guest, as written to [`STAGE_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// A round of the loop begins.
    LoopStart = 1,
    /// A round of the loop has ended.
    LoopEnd = 2,
    /// The guest is in the system call's handler.
    Syscall = 3,
    /// The guest is in the handler of an exception, where the program ends.
    Exception = 4,
}

impl Stage {
    /// The stage that `byte` on the port stands for; `None` for any other byte.
    #[must_use]
    pub(super) fn of(byte: u8) -> Option<Self> {
        [
            Self::LoopStart,
            Self::LoopEnd,
            Self::Syscall,
            Self::Exception,
        ]
        .into_iter()
        .find(|stage| *stage as u8 == byte)
    }
}

/// Notes of the guest; a field is 0 when the guest did not reach its step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Notes {
    /// EAX of [`BRAND_LEAF`] in ring 0.
    pub(super) brand: u32,
    /// CS of the ring-3 code.
    pub(super) user_cs: u32,
    /// CS in the system call's handler.
    pub(super) syscall_cs: u32,
    /// CS after the return by SYSRETQ.
    pub(super) sysret_cs: u32,
    /// Number of the exception.
    pub(super) vector: u32,
    /// CS in the exception's handler.
    pub(super) exception_cs: u32,
    /// EAX of [`BRAND_LEAF`] in ring 3.
    pub(super) user_brand: u32,
}

// SAFETY: only `u32`s in C order: no padding, every bit pattern is a value.
unsafe impl ByteValued for Notes {}

core::arch::global_asm!(
    ".pushsection .rodata.wasmvm_check, \"a\"",
    ".globl wasmvm_check_start, wasmvm_check_syscall, wasmvm_check_stubs, wasmvm_check_end",
    ".hidden wasmvm_check_start, wasmvm_check_syscall, wasmvm_check_stubs, wasmvm_check_end",
    "wasmvm_check_start:",
    "    mov eax, {brand_leaf}",
    "    cpuid",
    "    mov dword ptr [{notes}], eax",
    "    mov ebx, {rounds}",
    "2:  mov al, {loop_start}",
    "    out {port}, al",
    "    mov ecx, {count}",
    "3:  dec ecx",
    "    jnz 3b",
    "    mov al, {loop_end}",
    "    out {port}, al",
    "    dec ebx",
    "    jnz 2b",
    // To ring 3: SS, RSP, RFLAGS, CS, RIP.
    "    push {user_data}",
    "    push {user_stack}",
    "    push {rflags}",
    "    push {user_code}",
    "    lea rax, [rip + 4f]",
    "    push rax",
    "    iretq",
    "4:  mov eax, cs",
    "    mov dword ptr [{notes} + 4], eax",
    "    mov eax, {brand_leaf}",
    "    cpuid",
    "    mov dword ptr [{notes} + 24], eax",
    "    syscall",
    "    mov eax, cs",
    "    mov dword ptr [{notes} + 12], eax",
    "    int3",
    "5:  jmp 5b",
    // RCX and R11 hold the way back.
    "wasmvm_check_syscall:",
    "    mov eax, cs",
    "    mov dword ptr [{notes} + 8], eax",
    "    mov al, {syscall}",
    "    out {port}, al",
    "    sysretq",
    ".balign {stub_bytes}, 0x90",
    "wasmvm_check_stubs:",
    ".set wasmvm_check_vector, 0",
    ".rept {vectors}",
    "    mov dword ptr [{notes} + 16], wasmvm_check_vector",
    "    jmp 6f",
    "    .balign {stub_bytes}, 0x90",
    "    .set wasmvm_check_vector, wasmvm_check_vector + 1",
    ".endr",
    "6:  mov eax, cs",
    "    mov dword ptr [{notes} + 20], eax",
    "    mov al, {exception}",
    "    out {port}, al",
    "7:  jmp 7b",
    "wasmvm_check_end:",
    ".popsection",
    brand_leaf = const BRAND_LEAF,
    notes = const NOTES_ADDRESS,
    rounds = const LOOP_ROUNDS,
    count = const LOOP_COUNT,
    port = const STAGE_PORT,
    loop_start = const Stage::LoopStart as u8,
    loop_end = const Stage::LoopEnd as u8,
    syscall = const Stage::Syscall as u8,
    exception = const Stage::Exception as u8,
    user_data = const USER_DATA,
    user_stack = const USER_STACK,
    user_code = const USER_CODE,
    rflags = const RFLAGS_RESERVED,
    vectors = const VECTORS,
    stub_bytes = const STUB_BYTES,
);

unsafe extern "C" {
    static wasmvm_check_start: u8;
    static wasmvm_check_syscall: u8;
    static wasmvm_check_stubs: u8;
    static wasmvm_check_end: u8;
}

/// The program's machine code.
fn code() -> &'static [u8] {
    let start = &raw const wasmvm_check_start;
    let bytes = (&raw const wasmvm_check_end).addr() - start.addr();
    // SAFETY: both labels are in the section above, the second behind the first; it is read-only.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// Guest-physical address of a label of the program.
fn address_of(label: *const u8) -> u64 {
    CODE_ADDRESS + (label.addr() - (&raw const wasmvm_check_start).addr()) as u64
}

/// Writes the program and its tables.
///
/// # Errors
/// vm-memory's, when RAM is smaller than the program.
pub(super) fn load(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    load_tables(memory, address_of(&raw const wasmvm_check_stubs))?;
    memory.write_slice(code(), GuestAddress(CODE_ADDRESS))
}

/// Writes the tables of a program whose exceptions go to `stubs`.
///
/// # Errors
/// vm-memory's.
pub(super) fn load_tables(memory: &GuestMemoryMmap, stubs: u64) -> Result<(), GuestMemoryError> {
    let [top, upper, directory] = PAGE_TABLES;
    memory.write_obj(upper | PRESENT_WRITABLE_USER, GuestAddress(top))?;
    memory.write_obj(directory | PRESENT_WRITABLE_USER, GuestAddress(upper))?;
    memory.write_obj(LARGE_PAGE | PRESENT_WRITABLE_USER, GuestAddress(directory))?;
    memory.write_obj(GDT, GuestAddress(GDT_ADDRESS))?;
    memory.write_obj(KERNEL_STACK, GuestAddress(TSS_ADDRESS + TSS_RSP0_OFFSET))?;
    for vector in 0..VECTORS {
        let kind = if vector == u64::from(BREAKPOINT) {
            USER_GATE
        } else {
            GATE
        };
        let [low, high] = gate(stubs + vector * STUB_BYTES, kind);
        memory.write_obj(low, GuestAddress(IDT_ADDRESS + vector * 16))?;
        memory.write_obj(high, GuestAddress(IDT_ADDRESS + vector * 16 + 8))?;
    }
    Ok(())
}

/// A descriptor of the IDT (Intel SDM vol. 3A, figure 6-8).
fn gate(handler: u64, kind: u64) -> [u64; 2] {
    let low = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 32;
    [low | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

/// The guest's notes, read from its memory.
///
/// # Errors
/// vm-memory's, when RAM ends before the notes.
pub(super) fn notes(memory: &GuestMemoryMmap) -> Result<Notes, GuestMemoryError> {
    memory.read_obj(GuestAddress(NOTES_ADDRESS))
}

/// General registers at the start.
#[must_use]
pub(super) fn registers() -> kvm_regs {
    kvm_regs {
        rip: address_of(&raw const wasmvm_check_start),
        rsp: KERNEL_STACK,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    }
}

/// Long mode in ring 0, from the state at reset, with what system calls and exceptions take.
pub(super) fn set_special_registers(sregs: &mut kvm_sregs) {
    LONG_MODE.set(sregs);
    sregs.tr = kvm_segment {
        base: TSS_ADDRESS,
        limit: TSS_BYTES - 1,
        selector: TASK,
        type_: 0b1011,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT_ADDRESS,
        limit: 32 * 16 - 1,
        ..kvm_dtable::default()
    };
    sregs.efer |= EFER_SYSTEM_CALL;
}

/// Model-specific registers of SYSCALL: number and value.
#[must_use]
pub(super) fn syscall_msrs() -> [(u32, u64); 3] {
    let selectors = u64::from(USER_BASE) << 48 | u64::from(KERNEL_CODE) << 32;
    let handler = address_of(&raw const wasmvm_check_syscall);
    [(MSR_STAR, selectors), (MSR_LSTAR, handler), (MSR_SFMASK, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmvm_vmm::memory::allocate;

    #[test]
    fn the_tables_point_into_the_program() {
        let memory = allocate(32, false).unwrap();
        load(&memory).unwrap();
        let program = CODE_ADDRESS..CODE_ADDRESS + code().len() as u64;
        assert!(program.contains(&syscall_msrs()[1].1) && code().len() < 4096);
        for vector in 0..VECTORS {
            let low: u64 = memory
                .read_obj(GuestAddress(IDT_ADDRESS + vector * 16))
                .unwrap();
            let handler = low & 0xffff | low >> 48 << 16;
            assert!(program.contains(&handler), "vector {vector}: {handler:#x}");
            // mov dword ptr [disp32], imm32: the vector is the last field.
            let at = handler + 7;
            let noted: u32 = memory.read_obj(GuestAddress(at)).unwrap();
            assert_eq!(u64::from(noted), vector);
        }
    }

    #[test]
    fn the_task_segment_is_described_as_it_lies() {
        let base = GDT[6] >> 16 & 0xff_ffff;
        assert_eq!(
            (base, GDT[6] & 0xffff),
            (TSS_ADDRESS, u64::from(TSS_BYTES) - 1)
        );
        assert_eq!(u64::from(TASK), 6 * 8);
    }
}

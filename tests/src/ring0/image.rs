//! Machine code, and the kernel image around it.

/// Guest-physical address of the image, above what the VMM writes and below its initramfs; all of it is
/// mapped one to one.
const BASE: u64 = 16 << 20;
/// Offsets in the image: page tables, descriptors, text, what the program reads and writes, code.
const TOP_TABLE: u64 = 0;
const UPPER_TABLE: u64 = 0x1000;
/// Four tables of 2 MiB pages for the first 4 GiB, one for the first slots, one for anywhere.
const TABLES: u64 = 0x2000;
const SLOT_TABLE: u64 = 4;
const ANYWHERE_TABLE: u64 = 5;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x9000;
/// Limit and base of each, as LGDT and LIDT take them.
const GDT_POINTER: u64 = 0x9100;
const IDT_POINTER: u64 = 0x9110;
/// A table of no entries: whoever loads it does not survive the next exception.
const NO_POINTER: u64 = 0x9120;
const STACK_END: u64 = 0xc000;
const TEXT: u64 = 0xc000;
const DATA: u64 = 0x1_0000;
/// What a driver's rings and buffers lie in, bytes.
pub(super) const DATA_BYTES: u64 = 0x4_0000;
const CODE: u64 = DATA + DATA_BYTES;

const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// 64-bit code, data: present, ring 0, flat (Intel SDM vol. 3A, 3.4.5).
const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SEGMENT: u64 = 0x10;
/// A present interrupt gate of ring 0 (there, 6.14.1).
const GATE: u64 = 0x8e00;
const VECTORS: u64 = 256;
/// Exceptions; what is above are interrupts.
const EXCEPTIONS: u64 = 32;
/// Local APIC: end of interrupt.
const END_OF_INTERRUPT: u32 = 0xfee0_00b0;

/// Where the slots begin, and the window in which any address may be seen.
pub(super) const SLOTS: u64 = 32 << 30;
pub(super) const ANYWHERE: u64 = 33 << 30;

/// Where the data lies.
pub(super) const DATA_ADDRESS: u64 = BASE + DATA;
/// What CR3 holds.
pub(super) const PAGE_TABLES: u64 = BASE + TOP_TABLE;
pub(super) const IDT_POINTER_ADDRESS: u64 = BASE + IDT_POINTER;
pub(super) const GDT_POINTER_ADDRESS: u64 = BASE + GDT_POINTER;
pub(super) const NO_POINTER_ADDRESS: u64 = BASE + NO_POINTER;

/// Registers that a value is put into: the byte behind REX.W of `MOV r64, imm64`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Register {
    Rax = 0xb8,
    Rcx = 0xb9,
    Rdx = 0xba,
    Rbx = 0xbb,
    Rsp = 0xbc,
    Rsi = 0xbe,
    Rdi = 0xbf,
}

/// Instructions, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Code(Vec<u8>);

impl Code {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn put(&mut self, register: Register, value: u64) {
        self.bytes(&[0x48, register as u8]);
        self.bytes(&value.to_le_bytes());
    }

    /// A step: an exception in it leads to its end, by R15.
    pub(super) fn step(&mut self, emit: impl FnOnce(&mut Self)) {
        self.bytes(&[0x49, 0xbf]);
        let at = self.0.len();
        self.bytes(&[0; 8]);
        emit(self);
        let end = self.address();
        self.0[at..at + 8].copy_from_slice(&end.to_le_bytes());
    }

    /// Where the next instruction lies in the guest.
    fn address(&self) -> u64 {
        BASE + CODE + self.0.len() as u64
    }
}

/// The image in the making: the code begins by its own tables, and by handlers that let it go on.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) code: Code,
    text: Vec<u8>,
    memory: Vec<u8>,
    /// Where the processor begins.
    entry: u64,
}

impl Image {
    /// `anywhere` are the 2 MiB frames of the window [`ANYWHERE`], `data` is what lies in the data.
    pub(super) fn new(anywhere: impl Iterator<Item = u64>, data: &[u8]) -> Self {
        let mut image = Self {
            code: Code::default(),
            text: Vec::new(),
            memory: vec![0; usize::try_from(CODE).expect("a small image")],
            entry: 0,
        };
        image.write_tables(anywhere);
        image.write(DATA, data);
        image.write_handlers();
        image.set_up();
        image
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).expect("a small image");
        self.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn write_words(&mut self, offset: u64, words: impl Iterator<Item = u64>) {
        let words: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        self.write(offset, &words);
    }

    fn write_tables(&mut self, anywhere: impl Iterator<Item = u64>) {
        let table = |index: u64| (BASE + TABLES + index * PAGE) | PRESENT_WRITABLE;
        let large = |address: u64| address | LARGE | PRESENT_WRITABLE;
        let upper = (BASE + UPPER_TABLE) | PRESENT_WRITABLE;
        self.write_words(TOP_TABLE, [upper].into_iter());
        self.write_words(UPPER_TABLE, (0..4).map(table));
        let slots = [table(SLOT_TABLE), table(ANYWHERE_TABLE)];
        self.write_words(UPPER_TABLE + (SLOTS >> 30) * 8, slots.into_iter());
        let low = (0..4 * 512).map(|index| large(index * LARGE_PAGE));
        self.write_words(TABLES, low);
        let slots = (0..512).map(|index| large(SLOTS + index * LARGE_PAGE));
        self.write_words(TABLES + SLOT_TABLE * PAGE, slots);
        let anywhere = anywhere
            .take(512)
            .map(|frame| large(frame & !(LARGE_PAGE - 1)));
        self.write_words(TABLES + ANYWHERE_TABLE * PAGE, anywhere);
    }

    /// An exception goes on behind the step that raised it; an interrupt is ended and returns.
    fn write_handlers(&mut self) {
        let exception = self.code.address();
        self.code.put(Register::Rsp, BASE + STACK_END);
        self.code.bytes(&[0x41, 0xff, 0xe7]); // jmp r15
        let interrupt = self.code.address();
        self.code.bytes(&[0x50, 0xb8]); // push rax; mov eax, imm32
        self.code.bytes(&END_OF_INTERRUPT.to_le_bytes());
        self.code.bytes(&[0xc7, 0x00, 0, 0, 0, 0, 0x58, 0x48, 0xcf]); // mov dword [rax], 0; pop rax; iretq
        let handler = |vector| {
            if vector < EXCEPTIONS {
                exception
            } else {
                interrupt
            }
        };
        let gates = (0..VECTORS).flat_map(|vector| gate(handler(vector)));
        self.write_words(IDT, gates);
        self.write_words(GDT, SEGMENTS.into_iter());
        let pointer = |limit: u64, base: u64| [limit | base << 16, base >> 48].into_iter();
        self.write_words(IDT_POINTER, pointer(VECTORS * 16 - 1, BASE + IDT));
        self.write_words(
            GDT_POINTER,
            pointer(SEGMENTS.len() as u64 * 8 - 1, BASE + GDT),
        );
        self.write_words(NO_POINTER, pointer(0, 0));
    }

    fn set_up(&mut self) {
        self.entry = self.code.address();
        let code = &mut self.code;
        code.put(Register::Rax, PAGE_TABLES);
        code.bytes(&[0x0f, 0x22, 0xd8]); // mov cr3, rax
        // SSE (CR4.OSFXSR, OSXMMEXCPT): mov rax, cr4; or eax, 0x600; mov cr4, rax
        code.bytes(&[0x0f, 0x20, 0xe0, 0x0d, 0, 6, 0, 0, 0x0f, 0x22, 0xe0]);
        code.put(Register::Rsp, BASE + STACK_END);
        code.put(Register::Rax, GDT_POINTER_ADDRESS);
        code.bytes(&[0x0f, 0x01, 0x10]); // lgdt [rax]
        code.put(Register::Rax, IDT_POINTER_ADDRESS);
        code.bytes(&[0x0f, 0x01, 0x18]); // lidt [rax]
    }

    /// Prints a line to the console, byte by byte, whatever its line control was set to.
    pub(super) fn print(&mut self, line: &str) {
        let (at, len) = (TEXT + self.text.len() as u64, line.len() as u64);
        self.text.extend_from_slice(line.as_bytes());
        assert!(TEXT + self.text.len() as u64 <= DATA, "too much text");
        let code = &mut self.code;
        code.step(|code| {
            code.put(Register::Rdx, 0x3fb);
            code.bytes(&[0x31, 0xc0, 0xee]); // xor eax, eax; out dx, al
            code.put(Register::Rdx, 0x3f8);
            code.put(Register::Rsi, BASE + at);
            code.put(Register::Rcx, len);
            code.bytes(&[0xfc, 0xac, 0xee, 0xe2, 0xfc]); // cld; lodsb; out dx, al; loop
        });
    }

    /// An ELF file of one segment, as the VMM takes it for a kernel (System V ABI, "Object Files").
    pub(super) fn into_elf(mut self) -> Vec<u8> {
        let text = std::mem::take(&mut self.text);
        self.write(TEXT, &text);
        let entry = self.entry;
        let segment = [self.memory, self.code.0].concat();
        let mut elf = vec![0; usize::try_from(PAGE).expect("a page")];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        put(16, &[2, 0, 62, 0, 1]); // executable, x86-64
        put(24, &entry.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 1, 0]); // header, program header, their number
        put(64, &[1, 0, 0, 0, 7]); // loaded; read, written, executed
        let length = segment.len() as u64;
        for (at, value) in [
            (8, PAGE),
            (16, BASE),
            (24, BASE),
            (32, length),
            (40, length),
        ] {
            put(64 + at, &value.to_le_bytes());
        }
        [elf, segment].concat()
    }
}

/// A descriptor of the IDT (Intel SDM vol. 3A, figure 6-8).
fn gate(handler: u64) -> [u64; 2] {
    let low = handler & 0xffff | CODE_SEGMENT << 16 | GATE << 32;
    [low | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_entry_stands_behind_the_handlers_and_the_file_holds_its_segment() {
        let mut image = Image::new(std::iter::repeat(0), &[]);
        image.print("hello\n");
        let elf = image.into_elf();
        assert_eq!(word(&elf, 64 + 32), elf.len() as u64 - PAGE);
        let entry = word(&elf, 24);
        // mov rax, imm64 of the page tables.
        let at = entry - BASE + PAGE;
        assert_eq!(word(&elf, at + 2), PAGE_TABLES);
        assert_eq!(elf[usize::try_from(at).unwrap()..][..2], [0x48, 0xb8]);
    }

    #[test]
    fn every_gate_leads_to_a_handler() {
        let elf = Image::new(std::iter::repeat(0), &[]).into_elf();
        for vector in 0..VECTORS {
            let gate = word(&elf, PAGE + IDT + vector * 16);
            let handler = gate & 0xffff | (gate >> 48) << 16;
            let first = elf[usize::try_from(handler - BASE + PAGE).unwrap()];
            assert_eq!(
                first,
                if vector < EXCEPTIONS { 0x48 } else { 0x50 },
                "vector {vector}"
            );
        }
    }

    #[test]
    fn a_step_that_faults_is_left_at_its_end() {
        let mut code = Code::default();
        code.step(|code| code.bytes(&[0x0f, 0x0b]));
        assert_eq!(word(&code.0, 2), code.address());
        assert_eq!(code.0.len(), 12);
    }
}

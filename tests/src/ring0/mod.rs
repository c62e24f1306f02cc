//! A guest without a kernel: in its place, a seeded sequence of what only ring 0 may do.
//!
//! The machine code is made here, on the host, from the seed alone: [`kernel`] is an ELF file that the VMM
//! takes for its kernel. Each step is left by its end or by the exception that it raises, so that the
//! sequence goes on behind whatever the processor refuses; only what the VMM or KVM takes for the guest's end is its
//! end. The last step is always one: see [`Last`]. How far the guest came it prints to its console.

mod image;

use image::{
    ANYWHERE, Code, DATA_ADDRESS, DATA_BYTES, GDT_POINTER_ADDRESS, IDT_POINTER_ADDRESS, Image,
    NO_POINTER_ADDRESS, PAGE_TABLES, Register::Rax, Register::Rbx, Register::Rcx, Register::Rdi,
    Register::Rdx, Register::Rsi, SLOTS,
};

/// Steps of one guest before its last one.
pub const STEPS: u32 = 2000;
/// Steps at the end among which are those of drivers: a ring that is none is the end of a guest.
const DRIVEN: u32 = 200;
/// Between two lines on the console.
const STEPS_PER_LINE: u32 = 250;
/// What the console says before the last step.
pub const ALL_DONE: &str = "ring 0 made all its steps";

/// Registers of the virtio-mmio devices, a page each (vmm/src/arch/x86_64/layout.rs).
const DEVICES: u64 = 0xd000_0000;
const DEVICES_COUNT: u64 = 2;
/// The registers of one; behind those of the last there is nothing, so that an access of many bytes
/// begins in the first part.
const PAGE: u64 = 0x1000;
const WIDE: u64 = 0xdff;
/// virtio 1.2, 4.2.2: offsets of the registers, and three that are none.
const REGISTERS: [u64; 28] = [
    0, 4, 8, 0xc, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80,
    0x84, 0x90, 0x94, 0xa0, 0xa4, 0xb0, 0xfc, 0x100, 0x108, 0x2, 0xffc,
];
const FEATURES_SELECT: u64 = 0x24;
const FEATURES: u64 = 0x20;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

const LOCAL_APIC: u64 = 0xfee0_0000;
/// Its interrupt command register: INIT, SMI and NMI for itself are among the commands.
const APIC_COMMAND: u64 = 0x300;
const IO_APIC: u64 = 0xfec0_0000;
/// Ports with something behind them on a PC, the console and KVM's interrupt controllers among them.
const PORTS: [u64; 20] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xb2, 0x3f8,
    0x3f9, 0x3fb, 0x3fd, 0x4d0, 0xcf8,
];
/// Registers that a kernel reads and writes, KVM's own, counters, machine checks (vmm/src/arch/x86_64/offer/msr.rs).
const MSRS: [u64; 36] = [
    0x10,
    0x11,
    0x12,
    0x17,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x8b,
    0xce,
    0xfe,
    0x10a,
    0x10b,
    0x122,
    0x140,
    0x174,
    0x175,
    0x179,
    0x17a,
    0x186,
    0x1a0,
    0x1d9,
    0x277,
    0x2ff,
    0x345,
    0x400,
    0x480,
    0x6e0,
    0xda0,
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0xc000_0103,
    0xc001_0015,
];
const EFER: u64 = 0xc000_0080;
const X2APIC: u64 = 0x800;
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 47,
    1 << 63,
    u64::MAX,
];

/// One byte or a few that only ring 0 may execute, or that leave the guest.
const SINGLE: [&[u8]; 28] = [
    &[0xf3, 0x90],             // pause
    &[0x0f, 0x08],             // invd
    &[0x0f, 0x09],             // wbinvd
    &[0x0f, 0x06],             // clts
    &[0x0f, 0x31],             // rdtsc
    &[0x0f, 0x01, 0xf9],       // rdtscp
    &[0x0f, 0x33],             // rdpmc
    &[0x0f, 0x01, 0xc8],       // monitor
    &[0x0f, 0x01, 0xc9],       // mwait
    &[0x0f, 0x01, 0xf8],       // swapgs
    &[0x0f, 0x01, 0xd0],       // xgetbv
    &[0x0f, 0xc7, 0xf0],       // rdrand eax
    &[0x0f, 0xc7, 0xf8],       // rdseed eax
    &[0x0f, 0x0b],             // ud2
    &[0xcc],                   // int3
    &[0xf1],                   // int1
    &[0x0f, 0xaa],             // rsm
    &[0x0f, 0x01, 0xd8],       // vmrun
    &[0x0f, 0x01, 0xda],       // vmload
    &[0x0f, 0x01, 0xdc],       // stgi
    &[0x0f, 0x01, 0xdd],       // clgi
    &[0x0f, 0x01, 0xde],       // skinit
    &[0x0f, 0x01, 0xdf],       // invlpga
    &[0x0f, 0x01, 0xc2],       // vmlaunch
    &[0x0f, 0x01, 0xd5],       // xend
    &[0x31, 0xc9, 0xf7, 0xf1], // xor ecx, ecx; div ecx
    &[0x0f, 0x01, 0xe0],       // smsw eax
    &[0x0f, 0x00, 0xc8],       // str eax
];
/// Instructions on what RBX points to, by their bytes and whether they write there.
const ON_MEMORY: [(&[u8], bool); 22] = [
    (&[0x8a, 0x03], false),                        // mov al, [rbx]
    (&[0x66, 0x8b, 0x03], false),                  // mov ax, [rbx]
    (&[0x48, 0x8b, 0x03], false),                  // mov rax, [rbx]
    (&[0x0f, 0xb6, 0x03], false),                  // movzx eax, byte [rbx]
    (&[0x48, 0x0f, 0xbf, 0x03], false),            // movsx rax, word [rbx]
    (&[0x85, 0x03], false),                        // test [rbx], eax
    (&[0xff, 0x33], false),                        // push [rbx]
    (&[0xf3, 0x0f, 0x6f, 0x03], false),            // movdqu xmm0, [rbx]
    (&[0x88, 0x03], true),                         // mov [rbx], al
    (&[0x66, 0x89, 0x03], true),                   // mov [rbx], ax
    (&[0x48, 0x89, 0x03], true),                   // mov [rbx], rax
    (&[0x48, 0x87, 0x03], true),                   // xchg [rbx], rax
    (&[0xf0, 0x01, 0x03], true),                   // lock add [rbx], eax
    (&[0x0f, 0xb1, 0x0b], true),                   // cmpxchg [rbx], ecx
    (&[0x0f, 0xc7, 0x0b], true),                   // cmpxchg8b [rbx]
    (&[0x80, 0x0b, 0x7f], true),                   // or byte [rbx], 0x7f
    (&[0x8f, 0x03], true),                         // pop [rbx]
    (&[0xf3, 0x0f, 0x7f, 0x03], true),             // movdqu [rbx], xmm0
    (&[0x0f, 0xc3, 0x03], true),                   // movnti [rbx], eax
    (&[0x0f, 0xae, 0x03], true),                   // fxsave [rbx]
    (&[0xdf, 0x3b], true),                         // fistp qword [rbx]
    (&[0x48, 0x89, 0xdf, 0xfc, 0xf3, 0xa5], true), // mov rdi, rbx; cld; rep movsd
];

/// Of these, what a driver might use.
const MOVES: [&[u8]; 8] = [
    &[0x8a, 0x03],
    &[0x66, 0x8b, 0x03],
    &[0x48, 0x8b, 0x03],
    &[0x0f, 0xb6, 0x03],
    &[0x88, 0x03],
    &[0x66, 0x89, 0x03],
    &[0x48, 0x89, 0x03],
    &[0xff, 0x33],
];

/// What ends a guest for sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// An access where neither memory nor a device is.
    Nowhere,
    /// A write to a slot.
    SlotWrite,
    /// An exception without a table to find its handler in.
    TripleFault,
    /// Code where a device's registers are.
    CodeOfDevice,
    /// A processor that waits for no interrupt. From outside it is a boot that takes too long, as the
    /// three below are.
    Halt,
    /// A jump to itself.
    Loop,
    /// Bytes for the console without end.
    ConsoleFlood,
    /// Notifications of a device's queue without end.
    NotifyFlood,
}

impl Last {
    const ALL: [Self; 8] = [
        Self::Nowhere,
        Self::SlotWrite,
        Self::TripleFault,
        Self::CodeOfDevice,
        Self::Halt,
        Self::Loop,
        Self::ConsoleFlood,
        Self::NotifyFlood,
    ];
}

/// The kernel of this seed.
#[must_use]
pub fn kernel(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let data = data(&mut random);
    let frames: Vec<u64> = (0..512).map(|_| random.next() & 0xff_ffff_ffff).collect();
    let mut image = Image::new(frames.into_iter(), &data);
    for number in 0..STEPS {
        if number.is_multiple_of(STEPS_PER_LINE) {
            image.print(&format!("ring 0 made {number} steps\n"));
        }
        if drives(seed) && number + DRIVEN >= STEPS && random.one_in(40) {
            driver(&mut image.code, &mut random);
        } else {
            step(&mut image.code, &mut random);
        }
    }
    image.print(&format!("{ALL_DONE}, the last is {:?}\n", last(seed)));
    image.code.step(|code| emit_last(code, last(seed)));
    // Where that has no effect, which it must have.
    image.print("ring 0 goes on\n");
    image.code.bytes(&[0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; jmp
    image.into_elf()
}

/// Of a seed: each has its turn.
#[must_use]
pub fn last(seed: u64) -> Last {
    let count = Last::ALL.len() as u64;
    Last::ALL[usize::try_from(seed % count).unwrap_or(0)]
}

/// Whether the guest sets devices up: eight seeds do not, the next eight do.
fn drives(seed: u64) -> bool {
    seed / Last::ALL.len() as u64 % 2 == 1
}

/// What rings and buffers are made of: descriptors, mostly (virtio 1.2, 2.7.5), whose addresses lie here.
fn data(random: &mut Random) -> Vec<u8> {
    let words = (0..DATA_BYTES / 16).flat_map(|_| {
        let address = if random.one_in(8) {
            random.value()
        } else {
            random.data_address()
        };
        let length = if random.one_in(8) {
            random.value()
        } else {
            random.below(0x2000)
        };
        let flags = random.below(8);
        let next = if random.one_in(8) {
            random.below(0x1_0000)
        } else {
            random.below(64)
        };
        [address, length & 0xffff_ffff | flags << 32 | next << 48]
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// One step of any kind, what has ends seldom.
fn step(code: &mut Code, random: &mut Random) {
    match random.below(100) {
        0..=13 => port(code, random),
        14..=18 => string_port(code, random),
        19..=33 => msr(code, random),
        34..=38 => cpuid(code, random),
        39..=54 => device(code, random),
        55..=58 => interrupt_controller(code, random),
        59..=61 => on_memory(code, random.slot_address(), random, false),
        62..=66 => on_memory(code, random.data_address(), random, true),
        67..=74 => control_register(code, random),
        75..=78 => debug_register(code, random),
        79..=81 => table(code, random),
        82..=85 => hypercall(code, random),
        86..=95 => single(code, random),
        96 => interrupt(code, random),
        97 => timer(code, random),
        98 => {
            let address = DEVICES + random.below((DEVICES_COUNT - 1) * PAGE + WIDE);
            on_device(code, address, random);
        }
        // Mostly where nothing is, which would be the end.
        _ if random.one_in(200) => {
            let address = ANYWHERE + random.below(1 << 30);
            on_memory(code, address, random, true);
        }
        _ => invalidate(code, random),
    }
}

fn port(code: &mut Code, random: &mut Random) {
    let port = if random.one_in(3) {
        random.below(0x1_0000)
    } else {
        random.of(&PORTS)
    };
    let accesses: [&[u8]; 6] = [
        &[0xec],
        &[0xed],
        &[0x66, 0xed],
        &[0xee],
        &[0xef],
        &[0x66, 0xef],
    ];
    code.step(|code| {
        code.put(Rdx, port);
        code.put(Rax, random.value());
        code.bytes(random.of(&accesses));
    });
}

fn string_port(code: &mut Code, random: &mut Random) {
    let port = if random.one_in(3) {
        random.below(0x1_0000)
    } else {
        random.of(&PORTS)
    };
    let accesses: [&[u8]; 4] = [&[0xf3, 0x6c], &[0xf3, 0x6d], &[0xf3, 0x6e], &[0xf3, 0x6f]];
    code.step(|code| {
        code.put(Rdx, port);
        code.put(Rcx, random.below(64));
        code.put(Rsi, random.data_address());
        code.put(Rdi, random.data_address());
        code.bytes(&[if random.one_in(4) { 0xfd } else { 0xfc }]); // std, cld
        code.bytes(random.of(&accesses));
        code.bytes(&[0xfc]);
    });
}

fn msr(code: &mut Code, random: &mut Random) {
    let register = match random.below(10) {
        0 => random.value(),
        1 => X2APIC + random.below(0x100),
        2 => EFER + random.below(8),
        3 => random.below(0x2000),
        _ => random.of(&MSRS),
    };
    // EFER has no more to lose than what this code does without: SYSCALL and no-execute.
    let value = if register == EFER {
        0x500 | random.below(2) | random.below(2) << 11
    } else {
        random.value()
    };
    // What KVM writes by itself, it writes into the data or nowhere.
    let value = if register >> 8 == 0x4b_564d && random.one_in(2) {
        random.data_address() | 1
    } else {
        value
    };
    code.step(|code| {
        code.put(Rcx, register);
        code.put(Rax, value & 0xffff_ffff);
        code.put(Rdx, value >> 32);
        code.bytes(&[0x0f, if random.one_in(2) { 0x30 } else { 0x32 }]);
    });
}

fn cpuid(code: &mut Code, random: &mut Random) {
    let bases = [0, 0x4000_0000, 0x8000_0000, random.value()];
    code.step(|code| {
        code.put(Rax, random.of(&bases).wrapping_add(random.below(0x30)));
        code.put(Rcx, random.below(0x20));
        code.bytes(&[0x0f, 0xa2]);
    });
}

/// Of 4 bytes, as the registers want it, or of another width.
fn device(code: &mut Code, random: &mut Random) {
    let registers = DEVICES + random.below(DEVICES_COUNT) * PAGE;
    let address = registers + random.of(&REGISTERS);
    let value = match random.below(4) {
        0 => random.data_address(),
        1 => random.below(16),
        2 => random.below(0x200),
        _ => random.value(),
    };
    if random.one_in(4) {
        return on_device(code, registers + (address & WIDE), random);
    }
    let write = random.one_in(2);
    code.step(|code| {
        code.put(Rbx, address);
        code.put(Rax, value);
        code.bytes(if write { &[0x89, 0x03] } else { &[0x8b, 0x03] });
    });
}

/// What a driver does (virtio 1.2, 3.1.1), with rings anywhere in the data; seldom with what no driver does,
/// or with a step left out.
fn driver(code: &mut Code, random: &mut Random) {
    let registers = DEVICES + random.below(DEVICES_COUNT) * PAGE;
    let mut writes = vec![(STATUS, 0), (STATUS, 1), (STATUS, 3)];
    for half in 0..2 {
        let features = if random.one_in(16) {
            random.value()
        } else {
            half
        };
        writes.extend([(FEATURES_SELECT, half), (FEATURES, features)]);
    }
    writes.push((STATUS, 0xb));
    for queue in 0..3 {
        let size = if random.one_in(16) {
            random.value()
        } else {
            1 << random.below(4)
        };
        writes.extend([(QUEUE_SELECT, queue), (QUEUE_SIZE, size)]);
        for low in QUEUE_ADDRESSES {
            let ring = if random.one_in(32) {
                random.value()
            } else {
                random.data_address() & !0xf
            };
            writes.extend([(low, ring & 0xffff_ffff), (low + 4, ring >> 32)]);
            // An empty ring, as at the start; what the device takes is what it finds later.
            if low == QUEUE_ADDRESSES[1] && !random.one_in(4) {
                writes.push((ring.wrapping_sub(registers), random.below(2) << 16));
            }
        }
        writes.push((QUEUE_READY, 1));
    }
    writes.push((STATUS, 0xf));
    writes.extend((0..3).map(|queue| (QUEUE_NOTIFY, queue)));
    writes.retain(|_| !random.one_in(100));
    code.step(|code| {
        for (offset, value) in writes {
            code.put(Rbx, registers.wrapping_add(offset));
            code.put(Rax, value);
            code.bytes(&[0x89, 0x03]);
        }
    });
}

fn interrupt_controller(code: &mut Code, random: &mut Random) {
    let (address, value) = if random.one_in(3) {
        (IO_APIC + random.below(0x40) * 4, random.below(0x40))
    } else {
        (LOCAL_APIC + random.below(0x40) * 0x10, random.value())
    };
    if address == LOCAL_APIC + APIC_COMMAND && !random.one_in(10) {
        return;
    }
    code.step(|code| {
        code.put(Rbx, address);
        code.put(Rax, value);
        code.bytes(if random.one_in(2) {
            &[0x89, 0x03]
        } else {
            &[0x8b, 0x03]
        });
    });
}

fn on_memory(code: &mut Code, address: u64, random: &mut Random, writing: bool) {
    let kinds: Vec<&[u8]> = ON_MEMORY
        .into_iter()
        .filter(|(_, writes)| writing || !writes)
        .map(|(bytes, _)| bytes)
        .collect();
    code.step(|code| {
        code.put(Rbx, address);
        code.put(Rax, random.value());
        code.put(Rcx, random.below(16));
        code.put(Rsi, random.data_address());
        code.bytes(random.of(&kinds));
    });
}

/// Seldom by an instruction that KVM may not know how to emulate, which is an end.
fn on_device(code: &mut Code, address: u64, random: &mut Random) {
    if random.one_in(400) {
        return on_memory(code, address, random, true);
    }
    code.step(|code| {
        code.put(Rbx, address);
        code.put(Rax, random.value());
        code.bytes(random.of(&MOVES));
    });
}

/// Legal changes and others; afterwards it is as it was.
fn control_register(code: &mut Code, random: &mut Random) {
    // Not CR8: the testbed's QEMU aborts at a write to it while an interrupt waits (`tcg_handle_interrupt`).
    let number = u8::try_from(random.of(&[0, 2, 3, 4])).unwrap_or(0);
    let change = match number {
        // The bits of caching: an emulated processor takes reserved ones, and cannot enter the guest then.
        3 => random.of(&[0, 8, 0x10, 0x18]),
        _ if random.one_in(4) => random.value(),
        _ => 1 << random.below(32),
    };
    let operand = 0xc0 | number << 3;
    code.step(|code| {
        // mov rax, crN; mov rcx, rax; xor rax, rdx; mov crN, rax
        code.put(Rdx, change);
        code.bytes(&[0x0f, 0x20, operand, 0x48, 0x89, 0xc1, 0x48, 0x31, 0xd0]);
        code.bytes(&[0x0f, 0x22, operand]);
        // Back: mov crN, rcx.
        if number == 3 {
            code.put(Rcx, PAGE_TABLES);
        }
        code.bytes(&[0x0f, 0x22, operand | 1]);
    });
    // As Linux knows it, in place of a machine status word: lmsw ax, seldom.
    if random.one_in(10) {
        code.step(|code| {
            code.put(Rax, 1 | random.below(16));
            code.bytes(&[0x0f, 0x01, 0xf0]);
        });
    }
}

fn debug_register(code: &mut Code, random: &mut Random) {
    let number = u8::try_from(random.below(8)).unwrap_or(0);
    let value = if random.one_in(2) {
        random.value() & 0xffff_ffff
    } else {
        random.data_address()
    };
    code.step(|code| {
        code.put(Rax, value);
        code.bytes(&[0x0f, 0x23, 0xc0 | number << 3]);
        code.bytes(&[0x0f, 0x21, 0xc0 | number << 3]);
    });
    code.step(|code| code.bytes(&[0x31, 0xc0, 0x0f, 0x23, 0xf8])); // dr7 = 0
}

/// Loads tables that lead nowhere, and the true ones again before anything is looked up in them.
fn table(code: &mut Code, random: &mut Random) {
    let (load, back) = if random.one_in(2) {
        (0x10, GDT_POINTER_ADDRESS)
    } else {
        (0x18, IDT_POINTER_ADDRESS)
    };
    code.step(|code| {
        code.put(Rax, random.data_address());
        code.put(Rbx, back);
        code.bytes(&[0x0f, 0x01, load, 0x0f, 0x01, load | 3]); // lgdt or lidt [rax], then [rbx]
    });
    code.step(|code| {
        code.put(Rax, random.value());
        // ltr ax, lldt ax, sgdt [rsp - 16], sidt [rsp - 16]
        code.bytes(random.of(&[
            &[0x0f, 0x00, 0xd8][..],
            &[0x0f, 0x00, 0xd0],
            &[0x0f, 0x01, 0x44, 0x24, 0xf0],
            &[0x0f, 0x01, 0x4c, 0x24, 0xf0],
        ]));
    });
}

fn hypercall(code: &mut Code, random: &mut Random) {
    code.step(|code| {
        code.put(
            Rax,
            if random.one_in(4) {
                random.value()
            } else {
                random.below(16)
            },
        );
        code.put(Rbx, random.data_address());
        code.put(Rcx, random.value());
        code.put(Rdx, random.value());
        code.bytes(&[0x0f, 0x01, if random.one_in(2) { 0xc1 } else { 0xd9 }]);
    });
}

fn single(code: &mut Code, random: &mut Random) {
    code.step(|code| {
        code.put(Rax, random.value());
        code.put(Rcx, random.value());
        code.put(Rdx, random.value());
        code.bytes(random.of(&SINGLE));
    });
}

fn interrupt(code: &mut Code, random: &mut Random) {
    let vector = u8::try_from(random.below(0x100)).unwrap_or(0);
    code.step(|code| code.bytes(&[0xcd, vector]));
}

/// A one-shot timer of the local APIC, and a wait for its interrupt.
fn timer(code: &mut Code, random: &mut Random) {
    // Spurious vector and switch, task priority, divisor, timer, its count (Intel SDM vol. 3A, table 11-1).
    let writes = [
        (0xf0, 0x1ff),
        (0x80, 0),
        (0x3e0, 0xb),
        (0x320, 0x40 + random.below(0x80)),
        (0x380, 1 + random.below(10_000)),
    ];
    code.step(|code| {
        for (offset, value) in writes {
            code.put(Rbx, LOCAL_APIC + offset);
            code.put(Rax, value);
            code.bytes(&[0x89, 0x03]);
        }
        code.bytes(&[0xfb, 0xf4, 0xfa]); // sti; hlt; cli
    });
}

fn invalidate(code: &mut Code, random: &mut Random) {
    let address = if random.one_in(2) {
        random.value()
    } else {
        random.data_address()
    };
    code.step(|code| {
        code.put(Rbx, address);
        code.put(Rax, random.below(6));
        // invlpg [rbx]; invpcid rax, [rbx]; clflush [rbx]
        code.bytes(random.of(&[
            &[0x0f, 0x01, 0x3b][..],
            &[0x66, 0x0f, 0x38, 0x82, 0x03],
            &[0x0f, 0xae, 0x3b],
        ]));
    });
}

fn emit_last(code: &mut Code, last: Last) {
    match last {
        Last::Nowhere => {
            code.put(Rbx, 0xe000_0000);
            code.bytes(&[0x8b, 0x03]);
        }
        Last::SlotWrite => {
            code.put(Rbx, SLOTS);
            code.bytes(&[0x89, 0x03]);
        }
        Last::TripleFault => {
            code.put(Rax, NO_POINTER_ADDRESS);
            code.bytes(&[0x0f, 0x01, 0x18, 0x0f, 0x0b]); // lidt [rax]; ud2
        }
        Last::CodeOfDevice => {
            code.put(Rax, DEVICES);
            code.bytes(&[0xff, 0xe0]); // jmp rax
        }
        Last::Halt => code.bytes(&[0xfa, 0xf4, 0xeb, 0xfc]), // cli; hlt; jmp
        Last::Loop => code.bytes(&[0xfa, 0xeb, 0xfe]),       // cli; jmp
        Last::ConsoleFlood => {
            code.put(Rdx, 0x3f8);
            code.bytes(&[0xee, 0xeb, 0xfd]); // out dx, al; jmp
        }
        Last::NotifyFlood => {
            code.put(Rbx, DEVICES + QUEUE_NOTIFY);
            code.put(Rax, 0);
            code.bytes(&[0x89, 0x03, 0xeb, 0xfc]); // mov [rbx], eax; jmp
        }
    }
}

/// splitmix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(choices.len() as u64);
        choices[usize::try_from(index).unwrap_or(0)]
    }

    fn value(&mut self) -> u64 {
        if self.one_in(2) {
            self.of(&EDGES)
        } else {
            self.next()
        }
    }

    fn data_address(&mut self) -> u64 {
        // Room behind it for what an instruction takes at once.
        DATA_ADDRESS + self.below(DATA_BYTES - 0x200)
    }

    fn slot_address(&mut self) -> u64 {
        SLOTS + self.below(1 << 30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_kernel_and_another_seed_another() {
        assert!(kernel(7) == kernel(7) && kernel(7) != kernel(8));
        assert!(kernel(7).len() < 1 << 20);
    }

    #[test]
    fn each_last_step_has_its_turn() {
        let lasts: Vec<Last> = (0..8).map(last).collect();
        assert_eq!(lasts, Last::ALL);
    }
}

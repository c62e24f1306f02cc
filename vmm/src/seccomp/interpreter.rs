//! The compiled filters, read as the kernel reads them (`seccomp(2)`, classic BPF): what no thread may do,
//! by every number and argument that matters.

use libc::c_long;

use super::*;

/// `struct seccomp_data` (Linux `include/uapi/linux/seccomp.h`).
#[derive(Clone, Copy)]
struct Call {
    number: c_long,
    arguments: [u64; 6],
}

/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// Past the last system call of Linux 6.18.
const NUMBERS_END: c_long = 512;

impl Call {
    fn word(&self, offset: u32, arch: u32) -> u32 {
        let mut bytes = [0; 64];
        let number = u32::try_from(self.number).unwrap();
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[4..8].copy_from_slice(&arch.to_le_bytes());
        for (index, argument) in self.arguments.iter().enumerate() {
            bytes[16 + 8 * index..24 + 8 * index].copy_from_slice(&argument.to_le_bytes());
        }
        let at = usize::try_from(offset).unwrap();
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }
}

/// What the program returns: `SECCOMP_RET_*`.
fn verdict(program: &BpfProgram, call: &Call, arch: u32) -> u32 {
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        // The codes that seccompiler emits (Linux `include/uapi/linux/bpf_common.h`).
        match step.code {
            0x20 => accumulator = call.word(step.k, arch),
            0x54 => accumulator &= step.k,
            0x05 => at += usize::try_from(step.k).unwrap(),
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x06 => return step.k,
            code => panic!("code {code:#x} is not one that filters have here"),
        }
    }
}

fn allows(program: &BpfProgram, number: c_long, arguments: [u64; 6]) -> bool {
    let call = Call { number, arguments };
    verdict(program, &call, X86_64) == libc::SECCOMP_RET_ALLOW
}

fn filters() -> impl Iterator<Item = (Thread, BpfProgram)> {
    let filter = |thread| (thread, compile(thread).unwrap());
    Thread::ALL.into_iter().map(filter)
}

#[test]
fn no_thread_gets_memory_it_may_execute() {
    let exec = u64::try_from(libc::PROT_EXEC).unwrap();
    for (thread, filter) in filters() {
        for protection in (0..8).map(|rest| rest | exec) {
            for number in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
                let arguments = [0, 4096, protection, 0x22, u64::MAX, 0];
                let passes = allows(&filter, number, arguments);
                assert!(!passes, "{thread:?}: {number} with {protection}");
            }
        }
    }
}

#[test]
fn only_calls_of_the_list_pass_and_none_of_another_machine() {
    for (thread, filter) in filters() {
        let listed: Vec<c_long> = allowed::of(thread).map(|call| call.number).collect();
        for number in 0..NUMBERS_END {
            let call = Call {
                number,
                arguments: [0; 6],
            };
            let known = listed.contains(&number);
            assert!(
                known || !allows(&filter, number, [0; 6]),
                "{thread:?}: {number}"
            );
            // i386, whose numbers mean other calls.
            let foreign = verdict(&filter, &call, 0x4000_0003);
            assert_ne!(foreign, libc::SECCOMP_RET_ALLOW, "{thread:?}: {number}");
        }
    }
}

/// Terminals, disks and files have ioctls too; `KVMIO` is the type of KVM's.
#[test]
fn no_ioctl_passes_but_those_of_kvm() {
    for (thread, filter) in filters() {
        for request in (0..=0xffff).filter(|request| request >> 8 != u64::from(kvm_bindings::KVMIO))
        {
            for directed in [request, request | 0x4004_0000, request | 0x8008_0000] {
                let passes = allows(&filter, libc::SYS_ioctl, [0, directed, 0, 0, 0, 0]);
                assert!(!passes, "{thread:?}: {directed:#x}");
            }
        }
    }
}

//! Runs the check's guest and compares what the guest saw with what a processor does.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{GuestMemoryError, GuestMemoryMmap};
use wasmvm_vmm::arch::RAM_MIB_MIN;
use wasmvm_vmm::arch::x86_64::cpuid::guest_cpuid;
use wasmvm_vmm::kvm::KvmError;
use wasmvm_vmm::memory::{self, MemoryError};
use wasmvm_vmm::vm::Vm;

use super::Finding;
use super::program::{self, BRAND, BRAND_LEAF, BREAKPOINT, LOOP_INSTRUCTIONS, Notes, Stage};

/// The guest needs microseconds; where KVM emulates, seconds.
const RUN_TIME_MAX: Duration = Duration::from_secs(10);
/// Slower ring-0 code is not run by a processor. (Emulated SVM in the testbed: above 100.)
const MIPS_MIN: f64 = 20.0;
/// Exits after which the guest is given up; the program makes 12.
const EXITS_MAX: usize = 100;

/// Why the guest could not even be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    /// Guest RAM cannot be mapped.
    #[error("the guest's memory cannot be set up")]
    Memory(#[source] MemoryError),
    /// The guest's program or its notes lie outside of RAM.
    #[error("the guest's program cannot be written or read")]
    Program(#[source] GuestMemoryError),
    /// KVM refused an ioctl that makes the VM or sets the vCPU's state.
    #[error("KVM refuses the guest")]
    Kvm(#[source] KvmError),
    /// The vCPU's thread did not start.
    #[error("the guest's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// Result of a run of the guest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// Notes that the guest left in its memory.
    notes: Notes,
    /// Time of the fastest round of the guest's loop; `None` when no round ended.
    fastest_loop: Option<Duration>,
    /// Why the run ended.
    end: RunEnd,
}

/// Why a run of the guest ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RunEnd {
    /// The guest reached its exception's handler.
    Finished,
    /// `KVM_RUN` failed, its exit was not a write to the stage port, or there were more than `EXITS_MAX` exits.
    Exit {
        /// Name of the exit, or the error.
        exit: String,
        /// RIP at the exit; 0 when KVM did not answer.
        rip: u64,
    },
    /// The guest was still running after [`RUN_TIME_MAX`].
    TimedOut,
}

/// Runs the guest on `kvm` for at most some seconds.
///
/// # Errors
/// [`GuestError`].
pub(super) fn run(kvm: Kvm) -> Result<Run, GuestError> {
    let (memory, fastest_loop, end) = execute(kvm, &program::registers(), program::load)?;
    let notes = program::notes(&memory).map_err(GuestError::Program)?;
    Ok(Run {
        notes,
        fastest_loop,
        end,
    })
}

/// Runs the program that `load` wrote, from the state in `registers`, and returns the guest's memory as it is then.
pub(super) fn execute(
    kvm: Kvm,
    registers: &kvm_regs,
    load: impl FnOnce(&GuestMemoryMmap) -> Result<(), GuestMemoryError>,
) -> Result<(GuestMemoryMmap, Option<Duration>, RunEnd), GuestError> {
    let memory = memory::allocate(RAM_MIB_MIN, false).map_err(GuestError::Memory)?;
    load(&memory).map_err(GuestError::Program)?;
    let vm = Vm::new(kvm, memory.clone()).map_err(GuestError::Kvm)?;
    let mut vcpu = vm.create_vcpu().map_err(GuestError::Kvm)?;
    set_state(&vm, &vcpu, registers).map_err(GuestError::Kvm)?;

    let (ended, end) = mpsc::channel();
    thread::Builder::new()
        .name("vcpu".into())
        .spawn(move || {
            let outcome = drive(&mut vcpu);
            drop((vcpu, vm));
            // Nobody listens after a timeout.
            let _late = ended.send(outcome);
        })
        .map_err(GuestError::Thread)?;
    // A guest that hangs is left alone: the end of the process ends it.
    let (fastest_loop, end) = match end.recv_timeout(RUN_TIME_MAX) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => (None, RunEnd::TimedOut),
    };
    Ok((memory, fastest_loop, end))
}

fn set_state(vm: &Vm, vcpu: &VcpuFd, registers: &kvm_regs) -> Result<(), KvmError> {
    let mut cpuid = guest_cpuid(vm.kvm())?;
    set_brand(&mut cpuid);
    vcpu.set_cpuid2(&cpuid)
        .map_err(KvmError::of("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    program::set_special_registers(&mut sregs);
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::of("KVM_SET_SREGS"))?;
    vcpu.set_regs(registers)
        .map_err(KvmError::of("KVM_SET_REGS"))?;
    let entries = program::syscall_msrs().map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let refused = || KvmError::of("KVM_SET_MSRS")(kvm_ioctls::Error::new(libc::EINVAL));
    let msrs = Msrs::from_entries(&entries).map_err(|_| refused())?;
    match vcpu.set_msrs(&msrs).map_err(KvmError::of("KVM_SET_MSRS"))? {
        3 => Ok(()),
        _ => Err(refused()),
    }
}

fn set_brand(cpuid: &mut CpuId) {
    for leaf in cpuid.as_mut_slice() {
        if leaf.function == BRAND_LEAF {
            leaf.eax = BRAND;
        }
    }
}

/// Runs the vCPU to the guest's end and times its loop.
fn drive(vcpu: &mut VcpuFd) -> (Option<Duration>, RunEnd) {
    let mut fastest: Option<Duration> = None;
    let mut loop_start = Instant::now();
    for _ in 0..EXITS_MAX {
        let exit = match vcpu.run() {
            Ok(VcpuExit::IoOut(program::STAGE_PORT, [byte])) => Stage::of(*byte),
            Ok(other) => {
                let exit = name(&other);
                return (
                    fastest,
                    RunEnd::Exit {
                        exit,
                        rip: rip(vcpu),
                    },
                );
            }
            Err(errno) if errno.errno() == libc::EINTR => continue,
            Err(errno) => {
                let exit = format!("KVM_RUN failed: {errno}");
                return (
                    fastest,
                    RunEnd::Exit {
                        exit,
                        rip: rip(vcpu),
                    },
                );
            }
        };
        match exit {
            Some(Stage::LoopStart) => loop_start = Instant::now(),
            Some(Stage::LoopEnd) => {
                let took = loop_start.elapsed();
                fastest = Some(fastest.map_or(took, |best| best.min(took)));
            }
            Some(Stage::Exception) => return (fastest, RunEnd::Finished),
            Some(Stage::Syscall) | None => {}
        }
    }
    let exit = format!("more than {EXITS_MAX} exits");
    (
        fastest,
        RunEnd::Exit {
            exit,
            rip: rip(vcpu),
        },
    )
}

fn name(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::InternalError => {
            "KVM_EXIT_INTERNAL_ERROR (it could not emulate an instruction)".into()
        }
        VcpuExit::Shutdown => "KVM_EXIT_SHUTDOWN (triple fault)".into(),
        VcpuExit::FailEntry(reason, _) => {
            format!("KVM_EXIT_FAIL_ENTRY (hardware reason {reason:#x})")
        }
        other => format!("an unexpected exit ({other:?})"),
    }
}

fn rip(vcpu: &VcpuFd) -> u64 {
    vcpu.get_regs().map_or(0, |regs| regs.rip)
}

/// Findings: one per step that the guest reached, and one for the guest's end.
#[must_use]
pub(super) fn findings(run: &Run) -> Vec<Finding> {
    let notes = &run.notes;
    let mut findings = vec![];
    findings.extend(run.fastest_loop.map(speed));
    // What is still 0 was not reached.
    let steps = [
        (notes.user_cs, cpuid(0, notes.brand)),
        (notes.user_cs, level("IRETQ to ring 3", notes.user_cs, 3)),
        (notes.syscall_cs, cpuid(3, notes.user_brand)),
        (
            notes.syscall_cs,
            level("SYSCALL from ring 3", notes.syscall_cs, 0),
        ),
        (
            notes.sysret_cs,
            level("SYSRETQ to ring 3", notes.sysret_cs, 3),
        ),
        (
            notes.exception_cs,
            exception(notes.vector, notes.exception_cs),
        ),
    ];
    let reached = steps.into_iter().filter(|(note, _)| *note != 0);
    findings.extend(reached.map(|(_, finding)| finding));
    findings.push(match &run.end {
        RunEnd::Finished => Finding::good("the guest ended by itself"),
        RunEnd::Exit { exit, rip } => {
            let (last, next) = progress(notes);
            Finding::bad(format!(
                "the guest did not get from {last} to {next}: {exit} at rip {rip:#x}"
            ))
        }
        RunEnd::TimedOut => {
            let (last, next) = progress(notes);
            Finding::bad(format!(
                "the guest hung between {last} and {next} for {RUN_TIME_MAX:?}"
            ))
        }
    });
    findings
}

/// The last step that the guest reached, and the step that should have followed.
fn progress(notes: &Notes) -> (&'static str, &'static str) {
    let reached = [
        notes.user_cs,
        notes.syscall_cs,
        notes.sysret_cs,
        notes.exception_cs,
    ];
    let names = [
        "its start",
        "ring 3",
        "the system call",
        "ring 3 again",
        "the exception",
    ];
    let last = reached.iter().take_while(|note| **note != 0).count();
    let name = |index: usize| names.get(index).copied().unwrap_or("its end");
    (name(last), name(last + 1))
}

fn speed(fastest: Duration) -> Finding {
    let mips = f64::from(LOOP_INSTRUCTIONS) / fastest.as_secs_f64() / 1e6;
    if mips < MIPS_MIN {
        return Finding::bad(format!(
            "ring 0 runs {mips:.1} million instructions per second, implausibly slow: \
             this KVM emulates the guest's kernel"
        ));
    }
    Finding::good(format!(
        "ring 0 runs {mips:.0} million instructions per second"
    ))
}

fn cpuid(ring: u32, brand: u32) -> Finding {
    if brand == BRAND {
        return Finding::good(format!(
            "CPUID in ring {ring} is the one that KVM_SET_CPUID2 set"
        ));
    }
    Finding::bad(format!(
        "CPUID in ring {ring} is not the one that KVM_SET_CPUID2 set: \
         leaf {BRAND_LEAF:#x} reads {brand:#x}, set was {BRAND:#x}"
    ))
}

fn level(step: &str, cs: u32, wanted: u32) -> Finding {
    match cs & 3 {
        found if found == wanted => {
            Finding::good(format!("{step} arrives at privilege level {wanted}"))
        }
        found => Finding::bad(format!(
            "{step} arrives at privilege level {found} instead of {wanted}: \
             this KVM does not run the guest's kernel as a processor would"
        )),
    }
}

fn exception(vector: u32, cs: u32) -> Finding {
    if vector != BREAKPOINT {
        return Finding::bad(format!(
            "the guest got exception {vector} instead of the breakpoint it raised in ring 3"
        ));
    }
    level("the breakpoint from ring 3", cs, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Run = Run {
        notes: Notes {
            brand: BRAND,
            user_cs: 0x2b,
            syscall_cs: 0x8,
            sysret_cs: 0x2b,
            vector: BREAKPOINT,
            exception_cs: 0x8,
            user_brand: BRAND,
        },
        fastest_loop: Some(Duration::from_micros(65)),
        end: RunEnd::Finished,
    };

    fn bad_sentences(run: &Run) -> Vec<String> {
        findings(run)
            .into_iter()
            .filter(|finding| finding.is_bad())
            .map(|f| f.sentence)
            .collect()
    }

    #[test]
    fn a_real_kvm_has_no_bad_finding() {
        assert_eq!(bad_sentences(&GOOD), Vec::<String>::new());
        assert_eq!(findings(&GOOD).len(), 8);
    }

    #[test]
    fn a_paravirtual_kvm_is_recognised() {
        let run = Run {
            notes: Notes {
                user_brand: 0x1234,
                syscall_cs: 0x2b,
                sysret_cs: 0,
                vector: 0,
                exception_cs: 0,
                ..GOOD.notes
            },
            fastest_loop: Some(Duration::from_millis(90)),
            end: RunEnd::Exit {
                exit: "KVM_EXIT_INTERNAL_ERROR".into(),
                rip: 0x1_0060,
            },
        };
        let bad = bad_sentences(&run);
        assert!(bad[0].contains("2.2 million"), "{bad:?}");
        assert!(bad[1].contains("KVM_SET_CPUID2"), "{bad:?}");
        assert!(
            bad[2].contains("SYSCALL from ring 3 arrives at privilege level 3"),
            "{bad:?}"
        );
        assert!(
            bad[3].contains("from the system call to ring 3 again"),
            "{bad:?}"
        );
    }

    #[test]
    fn a_hang_says_where() {
        let run = Run {
            notes: Notes::default(),
            fastest_loop: None,
            end: RunEnd::TimedOut,
        };
        let bad = bad_sentences(&run);
        assert!(bad[0].contains("between its start and ring 3"), "{bad:?}");
    }

    #[test]
    fn a_wrong_exception_is_named() {
        let run = Run {
            notes: Notes {
                vector: 6,
                ..GOOD.notes
            },
            ..GOOD
        };
        assert!(bad_sentences(&run)[0].contains("exception 6"));
    }
}

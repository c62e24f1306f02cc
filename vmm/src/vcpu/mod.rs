//! The vCPU: its thread, its run loop and why it ends.
//!
//! ```text
//! start ──► KVM_RUN ──exit──► I/O port, MMIO ──► KVM_RUN …
//!              │ signal (kick)         │ nothing there
//!              ▼                       ▼
//!    gate closed: parked,           GuestEnd
//!         KVM_RUN …
//! ```
//!
//! To pause the guest ([`crate::gate`]) from another thread: the gate is closed, then a signal is sent to
//! the thread (`kvm_run`). A guest that does not end by itself runs until its process ends.

mod kvm_run;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::thread::{ClockId, Timespec, clock_nanosleep_relative};

use crate::arch::{self, Serial};
use crate::bus::{NoDevice, SharedBus, WriteError};
use crate::console::Console;
use crate::gate::{Gate, Pass};
use crate::kvm::KvmError;
use crate::report::sentence;
use crate::seccomp::{Thread, confine};
use crate::vm::Vm;
use kvm_run::{ImmediateExit, install_kick, kick_this_thread, suberror};

/// Bus locks of one guest in a second, where the host's KVM reports bus locks to the VMM.
pub const BUS_LOCKS_PER_SECOND_MAX: u32 = 1000;

/// Why the guest has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestEnd {
    /// Panic, reboot or power off: all end in a triple fault (`reboot=t panic=-1`).
    #[error("the guest shut down or its kernel panicked")]
    Shutdown,
    /// A write into the read-only slot.
    #[error("the guest wrote to the read-only slot at {address:#x}")]
    SlotWrite {
        /// Guest-physical address of the write.
        address: u64,
    },
    /// An access where neither memory nor a device is mapped.
    #[error("the guest {access} guest-physical address {address:#x}, where nothing is")]
    Nowhere {
        /// The kind of access: `read` or `wrote`.
        access: &'static str,
        /// Guest-physical address of the access.
        address: u64,
    },
    /// KVM could not emulate an instruction (Linux `kvm.h`, `KVM_INTERNAL_ERROR_*`).
    #[error("KVM cannot go on: internal error, suberror {suberror}, at rip {rip:#x}")]
    InternalError {
        /// 1 emulation, 2 simultaneous exception, 3 event delivery, 4 unexpected exit.
        suberror: u32,
        /// Guest-virtual address of the instruction; 0 when KVM did not answer.
        rip: u64,
    },
    /// The processor refused the guest's state.
    #[error("the processor did not enter the guest: hardware reason {reason:#x}")]
    FailEntry {
        /// The hardware's reason: vendor specific.
        reason: u64,
    },
    /// `KVM_RUN` failed; `EFAULT` means that no memory is behind a slot.
    #[error("KVM_RUN failed with errno {errno}")]
    Run {
        /// Number of the error (`errno.h`).
        errno: i32,
    },
    /// A device did not start when its driver set `DRIVER_OK`.
    #[error("a device of the guest does not work: {reason}")]
    Device {
        /// The device's error and its causes, in one line.
        reason: String,
    },
    /// The guest's clock could not be stopped and set again.
    #[error("the guest cannot be paused: {reason}")]
    Clock {
        /// KVM's call that failed, and its error, in one line.
        reason: String,
    },
    /// The vCPU's thread got no filter of system calls, without which it may not run the guest.
    #[error("the guest's vCPU cannot be confined: {reason}")]
    Confine {
        /// The filter's error and its causes, in one line.
        reason: String,
    },
    /// KVM left the guest by an exit that this machine has no use for.
    #[error("unexpected exit of the vCPU: {exit}")]
    Unexpected {
        /// The exit in KVM's words.
        exit: String,
    },
}

/// Why the vCPU's thread did not start.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The handler of the kick's signal could not be installed.
    #[error("cannot install the vCPU's kick signal")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// The operating system started no thread.
    #[error("cannot start the vCPU's thread")]
    Thread(#[source] io::Error),
}

/// A vCPU ready to run, with everything that its exits lead to.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    // Keeps the memory mapped for as long as the guest can run: behind `fd`, dropped later.
    vm: Arc<Vm>,
    bus: SharedBus,
    serial: Serial,
    gate: Gate,
}

/// The thread of a running vCPU.
pub type VcpuThread = JoinHandle<()>;

impl Vcpu {
    /// A vCPU whose registers and CPUID are set by `fd`.
    #[must_use]
    pub fn new(fd: VcpuFd, vm: Arc<Vm>, bus: SharedBus, console: Console, gate: Gate) -> Self {
        Self {
            fd,
            vm,
            bus,
            serial: Serial::new(console),
            gate,
        }
    }

    /// Runs the guest in a thread of its own; `on_end` is called there, once, when the guest has ended.
    ///
    /// # Errors
    /// [`VcpuError`].
    pub fn start(
        mut self,
        on_end: impl FnOnce(GuestEnd) + Send + 'static,
    ) -> Result<VcpuThread, VcpuError> {
        install_kick().map_err(VcpuError::Signal)?;
        thread::Builder::new()
            .name(Thread::Vcpu.name().into())
            // While the vCPU is there: to close it is no call of this thread's list.
            .spawn(move || on_end(self.run()))
            .map_err(VcpuError::Thread)
    }

    fn run(&mut self) -> GuestEnd {
        if let Err(err) = confine(Thread::Vcpu) {
            return GuestEnd::Confine {
                reason: sentence(&err),
            };
        }
        let _in_reach = ImmediateExit::of(&mut self.fd);
        let pass = self.gate.enter(kick_this_thread());
        loop {
            if pass.is_closed()
                && let Err(err) = self.pause(&pass)
            {
                return GuestEnd::Clock {
                    reason: sentence(&err),
                };
            }
            match self.fd.run() {
                Ok(exit) => {
                    if let Some(exit) = handle_exit(exit, &self.bus, &mut self.serial) {
                        return self.describe(exit);
                    }
                    // Of any exit, as a lock may come with another reason to leave the guest.
                    if arch::took_bus_lock(self.fd.get_kvm_run()) {
                        sit_out_a_bus_lock();
                    }
                }
                Err(errno) if errno.errno() == libc::EINTR => self.fd.set_kvm_immediate_exit(0),
                Err(errno) if errno.errno() == libc::EAGAIN => {}
                Err(errno) => {
                    return GuestEnd::Run {
                        errno: errno.errno(),
                    };
                }
            }
        }
    }

    /// Parks the thread, and stops the guest's clock meanwhile.
    fn pause(&self, pass: &Pass) -> Result<(), KvmError> {
        let clock_ns = arch::clock_ns(self.vm.fd())?;
        pass.park();
        arch::set_clock_ns(self.vm.fd(), clock_ns)?;
        arch::notify_of_pause(&self.fd)
    }

    /// Adds what only `kvm_run` and the registers have.
    fn describe(&mut self, end: GuestEnd) -> GuestEnd {
        let GuestEnd::InternalError { .. } = end else {
            return end;
        };
        let suberror = suberror(&mut self.fd);
        let rip = arch::instruction_address(&self.fd);
        GuestEnd::InternalError { suberror, rip }
    }
}

/// Serves one exit; `Some` when it is the guest's end.
fn handle_exit(exit: VcpuExit<'_>, bus: &SharedBus, serial: &mut Serial) -> Option<GuestEnd> {
    match exit {
        VcpuExit::MmioRead(address, data) => match bus.lock().read(address, data) {
            Ok(()) => None,
            // Beyond the slot's file, or before it is mapped: all ones, as on an empty bus.
            Err(NoDevice::Slot) => {
                data.fill(0xff);
                None
            }
            Err(NoDevice::Nowhere) => Some(GuestEnd::Nowhere {
                access: "read",
                address,
            }),
        },
        VcpuExit::MmioWrite(address, data) => {
            let written = bus.lock().write(address, data);
            written.err().map(|err| write_end(err, address))
        }
        VcpuExit::Shutdown => Some(GuestEnd::Shutdown),
        VcpuExit::InternalError => Some(GuestEnd::InternalError {
            suberror: 0,
            rip: 0,
        }),
        VcpuExit::FailEntry(reason, _cpu) => Some(GuestEnd::FailEntry { reason }),
        VcpuExit::Intr => None,
        other => arch::serve_exit(other, serial)
            .err()
            .map(|exit| GuestEnd::Unexpected { exit }),
    }
}

/// A bus lock, such as that of an atomic access over two cache lines, holds up every processor of the
/// host. So a guest that takes them gets at most [`BUS_LOCKS_PER_SECOND_MAX`]. A kick ends the wait.
fn sit_out_a_bus_lock() {
    let wait = Duration::from_secs(1) / BUS_LOCKS_PER_SECOND_MAX;
    if let Ok(wait) = Timespec::try_from(wait) {
        let _kicked = clock_nanosleep_relative(ClockId::Monotonic, &wait);
    }
}

fn write_end(error: WriteError, address: u64) -> GuestEnd {
    match error {
        WriteError::NoDevice(NoDevice::Slot) => GuestEnd::SlotWrite { address },
        WriteError::NoDevice(NoDevice::Nowhere) => GuestEnd::Nowhere {
            access: "wrote",
            address,
        },
        WriteError::Activate(err) => GuestEnd::Device {
            reason: sentence(&err),
        },
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::ActivateError;
    use kvm_bindings::{KVM_EXIT_NOTIFY, KVM_EXIT_X86_BUS_LOCK};
    use wasmvm_protocol::slot::SLOT_ADDRESS;

    fn end_of(exit: VcpuExit<'_>) -> Option<GuestEnd> {
        handle_exit(
            exit,
            &SharedBus::default(),
            &mut Serial::new(Console::new(false)),
        )
    }

    #[test]
    fn a_write_to_the_slot_ends_the_guest() {
        let end = end_of(VcpuExit::MmioWrite(SLOT_ADDRESS + 8, &[0; 8])).unwrap();
        assert_eq!(
            end,
            GuestEnd::SlotWrite {
                address: SLOT_ADDRESS + 8
            }
        );
        assert!(end.to_string().contains("0x800000008"), "{end}");
    }

    #[test]
    fn an_empty_slot_reads_as_ones() {
        let mut data = [0; 8];
        assert_eq!(end_of(VcpuExit::MmioRead(SLOT_ADDRESS, &mut data)), None);
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn ports_without_a_device_read_as_ones_and_swallow_writes() {
        let mut data = [0; 2];
        assert_eq!(end_of(VcpuExit::IoIn(0x70, &mut data)), None);
        assert_eq!(data, [0xff; 2]);
        assert_eq!(end_of(VcpuExit::IoOut(0x80, &[])), None);
    }

    #[test]
    fn a_device_that_does_not_start_ends_the_guest_with_its_reason() {
        let error = ActivateError::QueueSetup { device_id: 26 };
        let end = write_end(WriteError::Activate(error), 0);
        let sentence = "a device of the guest does not work: \
            the driver of virtio device 26 set up a queue that cannot be used";
        assert_eq!(end.to_string(), sentence);
    }

    #[test]
    fn a_bus_lock_is_sat_out_within_the_list_of_system_calls() {
        assert_eq!(end_of(VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK)), None);
        let confined = thread::spawn(|| {
            crate::seccomp::apply(Thread::Vcpu).unwrap();
            sit_out_a_bus_lock();
        });
        confined.join().unwrap();
        let lost = end_of(VcpuExit::Unsupported(KVM_EXIT_NOTIFY)).unwrap();
        assert!(lost.to_string().contains("KVM_EXIT_NOTIFY"), "{lost}");
    }

    #[test]
    fn what_nobody_expects_ends_the_guest_with_its_name() {
        assert_eq!(end_of(VcpuExit::Shutdown), Some(GuestEnd::Shutdown));
        assert!(end_of(VcpuExit::Hlt).unwrap().to_string().contains("Hlt"));
        let read = end_of(VcpuExit::MmioRead(0xdead_0000, &mut [0; 1])).unwrap();
        assert!(read.to_string().contains("0xdead0000"), "{read}");
    }
}

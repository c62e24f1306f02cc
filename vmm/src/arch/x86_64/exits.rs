//! Exits of a vCPU that only an x86 processor has.

use kvm_bindings::{KVM_EXIT_NOTIFY, KVM_EXIT_X86_BUS_LOCK, KVM_RUN_X86_BUS_LOCK, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::serial::{PORT_FIRST, PORT_LAST, Serial};

/// Serves an exit: I/O ports other than those of `serial` read as ones and swallow writes.
///
/// # Errors
/// The exit in KVM's words, when this machine has no use for it.
pub fn serve_exit(exit: VcpuExit<'_>, serial: &mut Serial) -> Result<(), String> {
    match exit {
        VcpuExit::IoOut(port, data) => {
            if let (PORT_FIRST..=PORT_LAST, Some(byte)) = (port, data.first()) {
                serial.write(port, *byte);
            }
            Ok(())
        }
        VcpuExit::IoIn(port, data) => {
            data.fill(0xff);
            if let (PORT_FIRST..=PORT_LAST, Some(byte)) = (port, data.first_mut()) {
                *byte = serial.read(port);
            }
            Ok(())
        }
        // What there is to do about a bus lock is in the flags.
        VcpuExit::IrqWindowOpen | VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK) => Ok(()),
        // Only the notification after which the guest cannot continue is asked for (`super::offer`).
        VcpuExit::Unsupported(KVM_EXIT_NOTIFY) => {
            Err("KVM_EXIT_NOTIFY, the processor's state is lost".into())
        }
        other => Err(format!("{other:?}")),
    }
}

/// Whether the guest took a bus lock before the exit, whatever the exit's own reason.
#[must_use]
pub fn took_bus_lock(run: &kvm_run) -> bool {
    u32::from(run.flags) & KVM_RUN_X86_BUS_LOCK != 0
}

/// Guest-virtual address of the instruction at which the vCPU stands; 0 when KVM does not answer.
#[must_use]
pub fn instruction_address(vcpu: &VcpuFd) -> u64 {
    vcpu.get_regs().map_or(0, |regs| regs.rip)
}

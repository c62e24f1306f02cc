//! Parts of the KVM VM and its vCPU that only x86 has: interrupt controllers, the TSC's rate, the guest's clock.

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::cpuid::{features, guest_cpuid};
use super::layout::{KVM_IDENTITY_MAP_ADDRESS, KVM_TSS_ADDRESS};
use super::offer;
use crate::kvm::KvmError;

/// Restricts a new VM as far as KVM offers it, and gives it interrupt controllers, without a PIT. Comes before the
/// first vCPU, which takes its counters from the restrictions and gets a local APIC by the controllers.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn init_vm(kvm: &Kvm, vm: &VmFd) -> Result<(), KvmError> {
    offer::restrict_vm(kvm, vm)?;
    // kvm_intel needs both for guests in real mode; before the first vCPU.
    vm.set_identity_map_address(KVM_IDENTITY_MAP_ADDRESS)
        .map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(KVM_TSS_ADDRESS)
        .map_err(KvmError::of("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(KvmError::of("KVM_CREATE_IRQCHIP"))
}

/// Sets the TSC of a new vCPU to the host's rate, and restricts the vCPU as far as KVM offers it.
///
/// The rate is set although it is the default: a host that corrected its own TSC's rate after
/// loading KVM, and cannot scale, refuses the default and leaves the vCPU's TSC without a rate. Its
/// deadline timer then fires seconds late (docs/decisions/002-tsc-rate.md).
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn init_vcpu(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), KvmError> {
    const HOST_RATE: u32 = 0;
    vcpu.set_tsc_khz(HOST_RATE)
        .map_err(KvmError::of("KVM_SET_TSC_KHZ"))?;
    offer::restrict_vcpu(kvm, vcpu)
}

/// Sets the vCPU's features, before any other state of the vCPU: KVM checks later settings against the features.
/// Returns the features as [`features`] writes them.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn set_features(kvm: &Kvm, vcpu: &VcpuFd) -> Result<String, KvmError> {
    let cpuid = guest_cpuid(kvm)?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(KvmError::of("KVM_SET_CPUID2"))?;
    Ok(features(cpuid.as_slice()))
}

/// The guest's monotonic clock, kvm-clock, nanoseconds.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn clock_ns(vm: &VmFd) -> Result<u64, KvmError> {
    let clock = vm.get_clock().map_err(KvmError::of("KVM_GET_CLOCK"))?;
    Ok(clock.clock)
}

/// Lets the guest's monotonic clock continue from `clock_ns`.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn set_clock_ns(vm: &VmFd, clock_ns: u64) -> Result<(), KvmError> {
    // No flags: with the host's real time KVM would add what passed since it was read.
    let clock = kvm_clock_data {
        clock: clock_ns,
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock).map_err(KvmError::of("KVM_SET_CLOCK"))
}

/// Notifies the guest that it was stopped, which keeps its watchdogs quiet.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn notify_of_pause(vcpu: &VcpuFd) -> Result<(), KvmError> {
    match vcpu.kvmclock_ctrl() {
        // The guest does not use the clock yet.
        Err(errno) if errno.errno() == libc::EINVAL => Ok(()),
        notified => notified.map_err(KvmError::of("KVM_KVMCLOCK_CTRL")),
    }
}

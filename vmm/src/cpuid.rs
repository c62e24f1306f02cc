//! What the guest's processor looks like: the host's, filtered.

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use crate::vm::VmError;

/// The CPUID of the guest's one vCPU.
///
/// # Errors
/// [`VmError::Kvm`].
pub fn guest_cpuid(kvm: &Kvm, deadline_timer: bool) -> Result<CpuId, VmError> {
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(VmError::of("KVM_GET_SUPPORTED_CPUID"))?;
    let _ = deadline_timer;
    Ok(cpuid)
}

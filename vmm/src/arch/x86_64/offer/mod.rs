//! Features that KVM offers a guest beside CPUID, taken away as far as the guest does not need them.
//!
//! KVM gives every guest its paravirtual MSRs, performance counters and a great many model-specific
//! registers, whatever CPUID says, unless restricted (Linux Documentation/virt/kvm/api.rst,
//! arch/x86/kvm/x86.c). Each [`Restriction`] takes one such feature away. A host whose KVM does not know a
//! restriction starts guests all the same, and `wasmvm check` says which restrictions are missing.

mod msr;

use kvm_bindings::{
    KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_X86_BUS_LOCK_EXIT, KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_NOTIFY_VMEXIT,
    KVM_PMU_CAP_DISABLE, KVM_X86_NOTIFY_VMEXIT_ENABLED, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, VcpuFd, VmFd};

use crate::kvm::KvmError;

pub use msr::{Access, READABLE_AND_WRITABLE as MSRS, is_allowed};

/// Call by which KVM takes a restriction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// `KVM_ENABLE_CAP` of the VM, before its vCPU, with this argument, when KVM offers these bits.
    Vm { needs: u32, argument: u64 },
    /// `KVM_ENABLE_CAP` of the vCPU, with this argument, when KVM offers the capability.
    Vcpu { argument: u64 },
    /// `KVM_X86_SET_MSR_FILTER` of the VM, before its vCPU.
    MsrFilter,
}

/// A feature of KVM that a guest does not get.
#[derive(Clone, Copy, Debug)]
pub struct Restriction {
    number: u32,
    /// The capability by which KVM takes the restriction (Linux `include/uapi/linux/kvm.h`).
    pub name: &'static str,
    /// The feature in words, as `wasmvm check` names it.
    pub keeps_out: &'static str,
    means: Means,
}

/// Every restriction, in the order of `wasmvm check`.
pub const RESTRICTIONS: [Restriction; 5] = [
    Restriction {
        number: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        name: "KVM_CAP_ENFORCE_PV_FEATURE_CPUID",
        keeps_out: "paravirtual features that CPUID does not name",
        means: Means::Vcpu { argument: 1 },
    },
    Restriction {
        number: KVM_CAP_X86_MSR_FILTER,
        name: "KVM_CAP_X86_MSR_FILTER",
        keeps_out: "model-specific registers that are on no list",
        means: Means::MsrFilter,
    },
    Restriction {
        number: KVM_CAP_PMU_CAPABILITY,
        name: "KVM_CAP_PMU_CAPABILITY",
        keeps_out: "performance counters",
        means: Means::Vm {
            needs: KVM_PMU_CAP_DISABLE,
            argument: KVM_PMU_CAP_DISABLE as u64,
        },
    },
    // KVM reports every split lock to the VMM, which lets the guest wait (`crate::vcpu`).
    Restriction {
        number: KVM_CAP_X86_BUS_LOCK_EXIT,
        name: "KVM_CAP_X86_BUS_LOCK_EXIT",
        keeps_out: "bus locks at full speed, which slow every processor of the host",
        means: Means::Vm {
            needs: KVM_BUS_LOCK_DETECTION_EXIT,
            argument: KVM_BUS_LOCK_DETECTION_EXIT as u64,
        },
    },
    // The upper half of the argument is a window on top of the processor's own; none is needed.
    Restriction {
        number: KVM_CAP_X86_NOTIFY_VMEXIT,
        name: "KVM_CAP_X86_NOTIFY_VMEXIT",
        keeps_out: "a processor of the host for longer than its interrupts can wait",
        means: Means::Vm {
            needs: KVM_X86_NOTIFY_VMEXIT_ENABLED,
            argument: KVM_X86_NOTIFY_VMEXIT_ENABLED as u64,
        },
    },
];

impl Restriction {
    /// Whether this host's KVM knows the restriction.
    #[must_use]
    pub fn is_offered(&self, kvm: &Kvm) -> bool {
        self.is_among(kvm.check_extension_raw(self.number.into()))
    }

    /// Whether `KVM_CHECK_EXTENSION` answered with what is needed: 0 for "unknown", else 1 or the bits that can be
    /// asked for.
    fn is_among(&self, answer: i32) -> bool {
        match self.means {
            Means::Vm { needs, .. } => answer > 0 && answer.unsigned_abs() & needs == needs,
            Means::Vcpu { .. } | Means::MsrFilter => answer > 0,
        }
    }

    fn order(&self, argument: u64) -> kvm_enable_cap {
        kvm_enable_cap {
            cap: self.number,
            args: [argument, 0, 0, 0],
            ..kvm_enable_cap::default()
        }
    }
}

fn offered(kvm: &Kvm) -> impl Iterator<Item = Restriction> {
    RESTRICTIONS.into_iter().filter(|one| one.is_offered(kvm))
}

/// Restricts a VM that has no vCPU yet, as far as KVM offers it.
///
/// # Errors
/// [`KvmError::Ioctl`] when KVM does not do what it offers.
pub fn restrict_vm(kvm: &Kvm, vm: &VmFd) -> Result<(), KvmError> {
    for restriction in offered(kvm) {
        match restriction.means {
            Means::Vm { argument, .. } => vm
                .enable_cap(&restriction.order(argument))
                .map_err(KvmError::of(restriction.name))?,
            Means::MsrFilter => {
                let filter = msr::Filter::new();
                vm.set_msr_filter(MsrFilterDefaultAction::DENY, &filter.ranges())
                    .map_err(KvmError::of("KVM_X86_SET_MSR_FILTER"))?;
            }
            Means::Vcpu { .. } => {}
        }
    }
    Ok(())
}

/// Restricts a vCPU, as far as KVM offers it.
///
/// # Errors
/// [`KvmError::Ioctl`] when KVM does not do what it offers.
pub fn restrict_vcpu(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), KvmError> {
    for restriction in offered(kvm) {
        if let Means::Vcpu { argument } = restriction.means {
            vcpu.enable_cap(&restriction.order(argument))
                .map_err(KvmError::of(restriction.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Restriction {
        let mut all = RESTRICTIONS.into_iter();
        all.find(|one| one.name.ends_with(name)).unwrap()
    }

    /// What the kernel is asked for (Linux `arch/x86/kvm/x86.c`, `kvm_vm_ioctl_enable_cap`,
    /// `kvm_vcpu_ioctl_enable_cap`): number and first argument.
    #[test]
    fn the_words_are_those_of_the_header() {
        let asked = |name| {
            let one = named(name);
            let argument = match one.means {
                Means::Vm { argument, .. } | Means::Vcpu { argument } => argument,
                Means::MsrFilter => 0,
            };
            let order = one.order(argument);
            (order.cap, order.args[0], order.flags)
        };
        assert_eq!(asked("ENFORCE_PV_FEATURE_CPUID"), (190, 1, 0));
        assert_eq!(asked("X86_MSR_FILTER"), (189, 0, 0));
        assert_eq!(asked("PMU_CAPABILITY"), (212, 1, 0));
        assert_eq!(asked("X86_BUS_LOCK_EXIT"), (193, 2, 0));
        assert_eq!(asked("X86_NOTIFY_VMEXIT"), (219, 1, 0));
    }

    #[test]
    fn nothing_is_asked_of_a_kvm_that_does_not_offer_it() {
        for one in RESTRICTIONS {
            assert!(!one.is_among(0) && !one.is_among(-1), "{}", one.name);
        }
        // Without the exit, KVM only knows how to ignore bus locks.
        assert!(!named("BUS_LOCK_EXIT").is_among(1));
        assert!(named("BUS_LOCK_EXIT").is_among(3));
        assert!(named("PMU_CAPABILITY").is_among(1));
    }
}

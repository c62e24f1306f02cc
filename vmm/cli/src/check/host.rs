//! Findings about the host's KVM before any guest runs.

use std::fs::File;
use std::io;
use std::path::Path;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};
use wasmvm_vmm::arch::x86_64::offer::{RESTRICTIONS, Restriction};
use wasmvm_vmm::kvm::open_kvm;

use super::Finding;

/// The read-only slot lies at 32 GiB and may be 1 GiB long.
const ADDRESS_BITS_MIN: u32 = 36;
/// Leaf 0x40000001, EAX: kvm-clock (`KVM_FEATURE_CLOCKSOURCE2`).
const KVM_CLOCK: u32 = 1 << 3;

/// Capabilities that the machine needs (Linux Documentation/virt/kvm/api.rst), each with its purpose.
const CAPABILITIES: [(Cap, &str, &str); 10] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest RAM"),
    (
        Cap::ReadonlyMem,
        "KVM_CAP_READONLY_MEM",
        "the read-only slot",
    ),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "devices' interrupts"),
    (
        Cap::Ioeventfd,
        "KVM_CAP_IOEVENTFD",
        "devices' notifications",
    ),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "the guest's CPUID"),
    (
        Cap::TscDeadlineTimer,
        "KVM_CAP_TSC_DEADLINE_TIMER",
        "the guest's timer",
    ),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "stopping a guest",
    ),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "Intel's real mode"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "kvm-clock"),
];

/// Opens KVM at `path`; the finding is that KVM can be used.
///
/// # Errors
/// The finding why KVM cannot be used; there is nothing further to check.
pub(super) fn open(path: &Path) -> Result<(Kvm, Finding), Finding> {
    let name = path.display();
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| {
            Finding::bad(match error.kind() {
                io::ErrorKind::NotFound => format!(
                    "{name} does not exist: the kernel has no KVM, its module is not loaded, \
                 or virtualization is off in the firmware"
                ),
                io::ErrorKind::PermissionDenied => {
                    format!("{name} cannot be opened: permission denied (run as root)")
                }
                _ => format!("{name} cannot be opened: {error}"),
            })
        })?;
    match open_kvm(file.into()) {
        Ok(kvm) => Ok((
            kvm,
            Finding::good(format!("{name} speaks KVM API version 12")),
        )),
        Err(error) => Err(Finding::bad(format!("{name} is not usable: {error}"))),
    }
}

/// Findings: one per capability and restriction, and those about CPUID.
#[must_use]
pub(super) fn findings(kvm: &Kvm) -> Vec<Finding> {
    let mut findings: Vec<_> = CAPABILITIES
        .into_iter()
        .map(|(capability, name, purpose)| has(kvm.check_extension(capability), name, purpose))
        .collect();
    findings.extend(RESTRICTIONS.map(|one| restricts(&one, one.is_offered(kvm))));
    match kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) {
        Ok(cpuid) => {
            let leaf = |number| cpuid.as_slice().iter().find(|leaf| leaf.function == number);
            let features = leaf(0x4000_0001).map_or(0, |leaf| leaf.eax);
            findings.push(has(
                features & KVM_CLOCK != 0,
                "KVM_FEATURE_CLOCKSOURCE2",
                "guest time",
            ));
            findings.push(address_bits(
                leaf(0x8000_0008).map_or(0, |leaf| leaf.eax & 0xff),
            ));
        }
        Err(errno) => {
            findings.push(Finding::bad(format!(
                "KVM_GET_SUPPORTED_CPUID failed: {errno}"
            )));
        }
    }
    findings
}

fn has(there: bool, name: &str, purpose: &str) -> Finding {
    if there {
        return Finding::good(format!("{name} is there ({purpose})"));
    }
    Finding::bad(format!("{name} is missing, which {purpose} would need"))
}

/// A missing restriction is weak and not bad: the host runs guests all the same.
fn restricts(restriction: &Restriction, offered: bool) -> Finding {
    let (name, what) = (restriction.name, restriction.keeps_out);
    if offered {
        return Finding::good(format!("{name} is there (guests get no {what})"));
    }
    Finding::weak(format!("{name} is missing, so that guests may get {what}"))
}

fn address_bits(bits: u32) -> Finding {
    if bits >= ADDRESS_BITS_MIN {
        return Finding::good(format!("guest-physical addresses have {bits} bits"));
    }
    Finding::bad(format!(
        "guest-physical addresses have {bits} bits, fewer than {ADDRESS_BITS_MIN}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_kvm_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let finding = open(&directory.path().join("kvm")).unwrap_err();
        assert!(
            finding.is_bad() && finding.sentence.contains("does not exist"),
            "{finding:?}"
        );
    }

    #[test]
    fn a_file_that_is_not_kvm_is_told_so() {
        let finding = open(Path::new("/dev/null")).unwrap_err();
        assert!(finding.sentence.contains("API version"), "{finding:?}");
    }

    #[test]
    fn a_missing_capability_names_its_purpose() {
        let finding = has(false, "KVM_CAP_IRQFD", "devices' interrupts");
        assert_eq!(
            finding.sentence,
            "KVM_CAP_IRQFD is missing, which devices' interrupts would need"
        );
    }

    #[test]
    fn a_host_that_cannot_restrict_its_guests_runs_them_all_the_same() {
        for restriction in RESTRICTIONS {
            let missing = restricts(&restriction, false);
            assert!(!missing.is_bad() && missing.to_string().starts_with("low KVM_CAP_"));
            assert!(restricts(&restriction, true).to_string().starts_with("ok "));
        }
    }

    #[test]
    fn narrow_addresses_are_a_bad_finding() {
        assert!(address_bits(32).is_bad() && !address_bits(40).is_bad());
    }
}

//! x86-64: a PC as far as Linux needs one, without firmware, PCI and ACPI.

pub mod boot;
pub mod cpuid;
pub mod exits;
pub mod layout;
pub mod long_mode;
pub mod offer;
pub mod serial;
pub mod vm;

use seccompiler::TargetArch;

/// Architecture of the system calls that the filters allow; any other kills at once.
pub const SECCOMP_ARCH: TargetArch = TargetArch::x86_64;
/// `e_machine` of a guest kernel's ELF header: `EM_X86_64`.
pub const ELF_MACHINE: u16 = 62;

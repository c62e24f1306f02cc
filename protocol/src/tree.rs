//! The file systems that a task's file tree never holds.

/// File systems that are interfaces to the kernel or to the host, not storage (`proc(5)`,
/// `/proc/filesystems`). With an identity map uid 0 could write host settings through their regular
/// files without any capability, so the shim keeps them out and the VMM looks again.
const KERNEL_FILE_SYSTEMS: [&str; 26] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "functionfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
    "xenfs",
];

/// Whether a file system of this type (as in `/proc/self/mountinfo`) is an interface to the kernel.
#[must_use]
pub fn is_kernel_file_system(kind: &str) -> bool {
    KERNEL_FILE_SYSTEMS.contains(&kind)
}

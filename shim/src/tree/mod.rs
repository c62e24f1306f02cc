//! The file tree of a task: rootfs and mounts, put together in a mount namespace of its own.
//!
//! ```text
//! thread of the task (CLONE_FS | CLONE_NEWNS)          what the host sees
//!   every mount made private                            nothing
//!   rootfs mounts      ──► spec.rootfs                  bundle/rootfs stays empty
//!   /dev, binds, tmpfs ──► points inside, by openat2(RESOLVE_IN_ROOT)
//!   masked and read-only paths
//!   read-only, and fchdir into it
//! ```
//!
//! The namespace ends with its last process, the VMM: the tree itself is never unmounted. Every mount that enters is
//! `nodev` and `nosuid`. File systems that are the kernel's own interfaces (proc, sysfs, cgroup, …)
//! never enter: with the VMM's identity map, user 0 could write `/proc/sys/kernel/core_pattern` as an
//! ordinary file.

mod assemble;
mod bind;
mod copy_up;
mod dev;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod mask;
mod options;
mod point;
mod rootfs;
mod spec_tmpfs;
#[cfg(test)]
mod tests;
mod tmpfs;

pub(crate) use assemble::{DeviceMount, assemble};
pub(crate) use error::TreeError;
pub(crate) use point::open_inside;
pub(crate) use rootfs::RootfsMount;

//! No page of this VMM is merged with an equal one of another process.
//!
//! Kernel same-page merging would let one guest learn by timing what another holds. A service manager can
//! turn it on for all processes of a unit (`MemoryKSM=`, systemd.exec(5)), and children inherit that.

use std::io;

use super::syscalls::set_memory_merge;

/// Turns merging off for all of this process's memory, also what is mapped later.
pub(super) fn forbid() -> io::Result<()> {
    match set_memory_merge(false) {
        // A kernel without the call, or without merging, merges nothing.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        set => set,
    }
}

#[cfg(test)]
mod tests {
    use super::super::syscalls::memory_merge;
    use super::*;

    #[test]
    fn what_is_inherited_ends_here() {
        // EINVAL where the kernel knows no merging.
        let _merges = set_memory_merge(true);
        forbid().unwrap();
        assert!(!matches!(memory_merge(), Ok(1)));
    }
}

//! No page of this VMM is merged with an equal one of another process.
//!
//! Kernel same-page merging would let one guest learn by timing what another holds. A service manager can
//! turn it on for all processes of a unit (`MemoryKSM=`, systemd.exec(5)), and children inherit that.

use std::io;

/// Turns merging off for all of this process's memory, also what is mapped later (`prctl(2)`, Linux 6.4).
pub(super) fn forbid() -> io::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, 0, 0, 0, 0) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // A kernel without the call, or without merging, merges nothing.
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inherited_ends_here() {
        // SAFETY: takes numbers only; EINVAL where the kernel knows no merging.
        unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, 1, 0, 0, 0) };
        forbid().unwrap();
        // SAFETY: takes numbers only.
        let merges = unsafe { libc::prctl(libc::PR_GET_MEMORY_MERGE, 0, 0, 0, 0) };
        assert_ne!(merges, 1);
    }
}

//! Files in memory that are to be sealed: programs on their way to the compiler, artifacts on theirs back.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

/// Makes one that can be sealed, and never be executed where the kernel knows of that (memfd_create(2)).
/// `name` shows in `/proc/PID/fd`.
///
/// # Errors
/// `memfd_create(2)`'s.
pub(crate) fn memory_file(name: &CStr) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?.into()),
        result => Ok(result?.into()),
    }
}

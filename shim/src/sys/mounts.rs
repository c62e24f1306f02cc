//! Changes of mounts by `mount_setattr(2)`, which rustix does not have.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's `struct mount_attr`, version 0 (`include/uapi/linux/mount.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes to make on a mount.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountChange {
    /// Makes the mount read-only.
    pub read_only: bool,
    /// Disables device files and setuid bits, and propagation from and to other namespaces.
    pub harmless: bool,
    /// Makes the changes on every mount below, too.
    pub recursive: bool,
}

/// Changes the mount that `mount` is the root of.
///
/// # Errors
/// `mount_setattr(2)`'s; `EINVAL` when `mount` is not the root of a mount.
pub(crate) fn change_mount(mount: impl AsFd, change: MountChange) -> io::Result<()> {
    let mut attr = MountAttr::default();
    if change.read_only {
        attr.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if change.harmless {
        attr.attr_set |= libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
        attr.propagation = libc::MS_PRIVATE;
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a C string, `attr` is a live `mount_attr` of the size given, and the kernel
    // writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the calling thread a root and working directory of its own: only such a thread may enter another
/// mount namespace (`setns(2)`).
///
/// # Errors
/// `unshare(2)`'s.
pub(crate) fn leave_shared_directories() -> io::Result<()> {
    // SAFETY: FILES is not among the flags, so the descriptor table stays shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    Ok(())
}

//! System calls of the jail that rustix does not have, or has as unsafe functions.
#![allow(unsafe_code, reason = "system calls by libc")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{Jail, JailError, Step};

const CREATE_RULESET_VERSION: libc::c_uint = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;
/// Exit status after SIGTERM, as a shell would show it.
const SIGTERM_STATUS: libc::c_int = 128 + libc::SIGTERM;
/// Step of the jail in which descriptors are closed.
const CLOSE: &str = "close unknown descriptors";

/// `struct landlock_ruleset_attr`; older kernels take it as long as the members that they don't know are zero.
#[repr(C)]
pub(super) struct Ruleset {
    pub(super) files: u64,
    pub(super) network: u64,
    pub(super) scoped: u64,
}

/// `struct landlock_path_beneath_attr` of a rule.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: libc::c_int,
}

/// The result of a system call that libc makes by hand: negative means that `errno` has the error.
fn checked(returned: impl Into<libc::c_long>) -> io::Result<libc::c_long> {
    let returned = returned.into();
    if returned >= 0 {
        Ok(returned)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes a mount read-only, given its root (`mount_setattr(2)`).
pub(super) fn make_mount_read_only(root: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, `attributes` is a live `mount_attr` of the size given, and the
    // kernel writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    checked(result).map(drop)
}

/// Version of Landlock that the kernel offers; 0, and no error, where the kernel has no Landlock, has it switched
/// off, or a filter hides it.
pub(super) fn landlock_version() -> u32 {
    let no_ruleset = std::ptr::null::<Ruleset>();
    // SAFETY: asks for the version only; the null pointer of length 0 is not read.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            no_ruleset,
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// A descriptor of the rules.
pub(super) fn landlock_create(ruleset: &Ruleset) -> io::Result<OwnedFd> {
    // SAFETY: `ruleset` is alive and of the size given.
    let created = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const *ruleset,
            size_of::<Ruleset>(),
            0,
        )
    };
    let fd = i32::try_from(checked(created)?).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a rule that allows access below the directory `root`.
pub(super) fn landlock_allow_below(
    ruleset: &OwnedFd,
    root: impl AsFd,
    allowed: u64,
) -> io::Result<()> {
    let rule = PathBeneath {
        allowed,
        parent: root.as_fd().as_raw_fd(),
    };
    // SAFETY: `rule` is alive and what this type of rule takes.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0,
        )
    };
    checked(added).map(drop)
}

/// Puts the rules into force for this thread and those that it will start.
pub(super) fn landlock_restrict_self(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: only numbers go in.
    let restricted =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    checked(restricted).map(drop)
}

/// Sets whether pages of this process are merged with equal ones, also of what is mapped later (`prctl(2)`, Linux
/// 6.4).
pub(super) fn set_memory_merge(merge: bool) -> io::Result<()> {
    let merge = libc::c_ulong::from(merge);
    // SAFETY: takes numbers only.
    checked(unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, merge, 0, 0, 0) }).map(drop)
}

/// Whether pages of this process are merged.
#[cfg(test)]
pub(super) fn memory_merge() -> io::Result<libc::c_long> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::prctl(libc::PR_GET_MEMORY_MERGE, 0, 0, 0, 0) })
}

/// Joins a new session keyring (`keyctl(2)`).
pub(super) fn join_new_session_keyring() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name is allowed and means a new anonymous keyring; no memory of ours is read.
    let keyring = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            anonymous,
        )
    };
    checked(keyring).map(drop)
}

/// Number of the session keyring; `None` where keys are out of reach.
#[cfg(test)]
pub(super) fn session_keyring() -> Option<libc::c_long> {
    let (id, create) = (libc::KEY_SPEC_SESSION_KEYRING, 0);
    // SAFETY: only numbers go in and out.
    let keyring =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, id, create) };
    (keyring >= 0).then_some(keyring)
}

/// Enters a new user namespace. The kernel refuses that to a process of several threads.
pub(super) fn enter_new_user_namespace() -> rustix::io::Result<()> {
    // SAFETY: no file descriptor table or memory is unshared, and the kernel refuses the call to several threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }
}

/// Gives the calling thread mounts, a working directory and a umask of its own.
#[cfg(test)]
pub(super) fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: descriptors stay shared, nothing else of this thread is used by others.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }
}

/// Makes SIGTERM end the process, with the status of a shell's.
pub(super) fn exit_on_sigterm() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = exit_at_once;
    // SAFETY: the handler only calls `_exit`, so it may interrupt anything.
    let old = unsafe { libc::signal(libc::SIGTERM, handler as *const () as libc::sighandler_t) };
    if old == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

extern "C" fn exit_at_once(_signal: libc::c_int) {
    // SAFETY: `_exit` is async-signal-safe and takes no memory.
    unsafe { libc::_exit(SIGTERM_STATUS) }
}

/// Closes every descriptor above `last_known`.
///
/// # Errors
/// [`JailError::Step`].
pub fn close_unknown_fds(last_known: RawFd) -> Result<(), JailError> {
    // SAFETY: called first of all, when no object of this process owns a descriptor above the known ones.
    unsafe { close_fds(last_known + 1, RawFd::MAX) }
}

impl Jail {
    /// Closes all descriptors of this process but standard input, output and error, the jail's own and `kept`.
    ///
    /// # Safety
    /// Nothing of this process uses another descriptor any more, nor drops what owns one.
    ///
    /// # Errors
    /// [`JailError::Step`].
    pub unsafe fn close_all_but(&self, kept: &[BorrowedFd<'_>]) -> Result<(), JailError> {
        let own = self.proc_root.as_fd();
        let mut kept: Vec<RawFd> = kept.iter().chain([&own]).map(AsRawFd::as_raw_fd).collect();
        kept.sort_unstable();
        let mut first = libc::STDERR_FILENO + 1;
        for kept in kept {
            // SAFETY: the caller's promise.
            unsafe { close_fds(first, kept - 1) }?;
            first = kept + 1;
        }
        // SAFETY: the caller's promise.
        unsafe { close_fds(first, RawFd::MAX) }
    }
}

/// Closes the descriptors from `first` to `last`; the range may be empty.
///
/// # Safety
/// No object of this process uses a descriptor of the range any more, or drops one.
unsafe fn close_fds(first: RawFd, last: RawFd) -> Result<(), JailError> {
    if first > last {
        return Ok(());
    }
    let number = |fd| {
        libc::c_uint::try_from(fd)
            .map_err(io::Error::other)
            .step(CLOSE)
    };
    let (first, last) = (number(first)?, number(last)?);
    // SAFETY: the caller's promise.
    let result = unsafe { libc::close_range(first, last, 0) };
    checked(result).map(drop).step(CLOSE)
}

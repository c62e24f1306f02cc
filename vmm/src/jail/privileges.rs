//! The user namespace and what is kept in it.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, unshare_unsafe,
};

use super::{JailError, Step};

/// What serving files of every owner takes, each in the VMM's own user namespace only.
///
/// `DAC_OVERRIDE`: files of mode 0600; `CHOWN`, `FOWNER`, `FSETID`: the guest's root may change owner,
/// mode and set-id bits; `SETUID`, `SETGID`: files are created with the owner who asked for them.
pub const KEPT_CAPABILITIES: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Capability numbers end below this (`capget(2)` has 64 bits).
const CAPABILITIES_MAX: u32 = 64;

/// Leaves the session keyring for an empty one. The inherited one is that of whoever started containerd,
/// and a process that possesses a keyring may read the keys in it (`session-keyring(7)`), in whichever
/// user namespace it lives.
pub(super) fn leave_session_keyring() -> Result<(), JailError> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name is allowed and means a new anonymous keyring; no memory of ours is read.
    let keyring = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            anonymous,
        )
    };
    if keyring >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A kernel without keys, or a filter of system calls that this process never gets rid of:
        // nobody in it can reach a key.
        Some(libc::ENOSYS | libc::EPERM) => Ok(()),
        _ => Err(error).step("leave the session keyring"),
    }
}

pub(super) fn enter_user_namespace() -> Result<(), JailError> {
    // SAFETY: no file descriptor table or memory is unshared, and this is the only thread.
    let entered = unsafe { unshare_unsafe(UnshareFlags::NEWUSER) };
    entered.step("enter a user namespace")
}

/// Leaves exactly [`KEPT_CAPABILITIES`], for this thread and all that it will start.
pub(super) fn drop_all_but_kept() -> Result<(), JailError> {
    set_thread_groups(&[]).step("drop supplementary groups")?;
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT_CAPABILITIES.contains(capability) {
            continue;
        }
        // The kernel does not know numbers past its last one.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability).step("shrink the bounding set")?;
        }
    }
    clear_ambient_capability_set().step("clear the ambient set")?;
    let sets = CapabilitySets {
        effective: KEPT_CAPABILITIES,
        permitted: KEPT_CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).step("drop capabilities")?;
    set_no_new_privs(true).step("forbid new privileges")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None` where keys are out of reach.
    fn session_keyring() -> Option<libc::c_long> {
        let (id, create) = (libc::KEY_SPEC_SESSION_KEYRING, 0);
        // SAFETY: only numbers go in and out.
        let keyring =
            unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, id, create) };
        (keyring >= 0).then_some(keyring)
    }

    /// Credentials, the keyring among them, are a thread's own: so is this test's.
    #[test]
    fn the_inherited_session_keyring_is_left() {
        let inherited = session_keyring();
        leave_session_keyring().unwrap();
        let own = session_keyring();
        assert!(own.is_none() || own != inherited, "{own:?}");
    }
}

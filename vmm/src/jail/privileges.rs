//! The user namespace, and the user, groups and capabilities kept in it.

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use wasmvm_protocol::control::{Credentials, FILE_CAPABILITIES, GROUPS_MAX};

use super::syscalls::{enter_new_user_namespace, join_new_session_keyring};
use super::{JailError, Step};

/// Capability numbers end below this (`capget(2)` has 64 bits).
const CAPABILITIES_MAX: u32 = 64;

/// Leaves the session keyring for an empty one. The inherited keyring belongs to the session that started
/// containerd, and a process that possesses a keyring may read the keys in it (`session-keyring(7)`), in whichever
/// user namespace it lives.
pub(super) fn leave_session_keyring() -> Result<(), JailError> {
    let Err(error) = join_new_session_keyring() else {
        return Ok(());
    };
    match error.raw_os_error() {
        // A kernel without keys, or a filter of system calls that this process never gets rid of:
        // no code in this process can reach a key.
        Some(libc::ENOSYS | libc::EPERM) => Ok(()),
        _ => Err(error).step("leave the session keyring"),
    }
}

pub(super) fn enter_user_namespace() -> Result<(), JailError> {
    enter_new_user_namespace().step("enter a user namespace")
}

/// The capabilities that a process with these credentials keeps, in its own user namespace only: those of the task's
/// program that serving files needs.
///
/// `DAC_OVERRIDE`, `DAC_READ_SEARCH`: files of mode 0600; `CHOWN`, `FOWNER`, `FSETID`: root may change owner,
/// mode and set-id bits; `SETUID`, `SETGID`: files are created with the owner of the request.
pub(super) fn kept(credentials: &Credentials) -> CapabilitySet {
    CapabilitySet::from_bits_truncate(credentials.capabilities & FILE_CAPABILITIES)
}

/// Becomes the user of the credentials and leaves exactly their capabilities, for this thread and all that it
/// will start.
pub(super) fn become_inmate(credentials: &Credentials) -> Result<(), JailError> {
    let kept = kept(credentials);
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        // The kernel does not know numbers past its last one.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability).step("shrink the bounding set")?;
        }
    }
    clear_ambient_capability_set().step("clear the ambient set")?;
    // Leaving uid 0 would take every capability along.
    set_keep_capabilities(true).step("keep capabilities")?;
    let groups = &credentials.groups[..credentials.groups.len().min(GROUPS_MAX)];
    let groups: Vec<Gid> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
    set_thread_groups(&groups).step("take the supplementary groups")?;
    let (uid, gid) = (
        Uid::from_raw(credentials.uid),
        Gid::from_raw(credentials.gid),
    );
    set_thread_res_gid(gid, gid, gid).step("take the group")?;
    set_thread_res_uid(uid, uid, uid).step("take the user")?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).step("drop capabilities")?;
    set_keep_capabilities(false).step("keep capabilities no further")?;
    set_no_new_privs(true).step("forbid new privileges")
}

#[cfg(test)]
mod tests {
    use super::super::syscalls::session_keyring;
    use super::*;

    /// Credentials, the keyring among them, are a thread's own: so is this test's.
    #[test]
    fn the_inherited_session_keyring_is_left() {
        let inherited = session_keyring();
        leave_session_keyring().unwrap();
        let own = session_keyring();
        assert!(own.is_none() || own != inherited, "{own:?}");
    }
}

//! The user namespace and what is kept in it.

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

//! The shim's only unsafe code: calls for which there is no safe wrapper.
//!
//! * [`copy`][]: a file copied at another cgroup's cost.
//! * [`inherit`][]: descriptors under fixed numbers in a child.
//! * [`mounts`][]: `mount_setattr`.
//! * [`spawn`][]: `clone3` and exec of a VMM into its namespaces and cgroup.
//! * [`watch`][]: a descriptor of our own on the runtime's poll loop; waiting for one with a deadline.

pub(crate) mod copy;
#[cfg(test)]
pub(crate) mod heap;
pub(crate) mod inherit;
pub(crate) mod mounts;
pub(crate) mod spawn;
pub(crate) mod watch;

//! The shim's only unsafe code: what no safe wrapper offers.
//!
//! * [`mounts`]: `mount_setattr`.

pub mod mounts;

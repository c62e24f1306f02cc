//! The shim's only unsafe code: what no safe wrapper offers.
//!
//! [`mounts`] has `mount_setattr(2)`.

pub mod mounts;

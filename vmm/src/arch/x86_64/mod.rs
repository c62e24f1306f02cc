//! x86-64.

pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod long_mode;
pub mod offer;

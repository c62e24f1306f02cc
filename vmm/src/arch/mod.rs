//! What depends on the processor's architecture.

pub mod x86_64;

pub use x86_64::{cpuid, layout, offer};

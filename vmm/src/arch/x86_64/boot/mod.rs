//! The 64-bit boot protocol of x86 Linux (Documentation/arch/x86/boot.rst).
//!
//! [`params`], [`mod@cmdline`] and [`mod@mp_table`] describe the machine to the kernel, [`entry`] is the processor's
//! state.

pub mod cmdline;
pub mod entry;
pub mod mp_table;
pub mod params;

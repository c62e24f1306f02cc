//! The agent's entry: PID 1 by default, `runner` and `compile` by argument (see the library).
//!
//! There is a `main` of our own because Rust's would abort before any of our code runs: PID 1 of an
//! initramfs without `/dev/console` starts with descriptors 0, 1 and 2 closed, and Rust's start-up
//! insists on `/dev/null`, which only we can make.
#![no_main]
#![deny(unsafe_code)]

use std::ffi::{c_char, c_int};

/// Called by the C library's start-up code.
#[allow(
    unsafe_code,
    reason = "the symbol must have the name that the C library calls"
)]
// SAFETY: the C library calls the one symbol `main` of this program, with this signature.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    wasmvm_guest_agent::main()
}

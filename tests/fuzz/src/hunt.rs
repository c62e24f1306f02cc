//! libFuzzer: follows what code an input reaches, and keeps those that reach more.

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

// The library, which has no Rust function that is called here.
use libfuzzer_sys as _;

use crate::bound;
use crate::targets::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

unsafe extern "C" {
    /// `libfuzzer/FuzzerDriver.cpp`.
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        callback: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

/// Hands over to libFuzzer with its own arguments; a panic ends the process, with the input kept where
/// `-artifact_prefix` says.
pub(crate) fn run(target: &'static Target, arguments: &[&str]) -> Result<(), String> {
    TARGET.get_or_init(|| target);
    // What it starts itself anew by, through a shell: `-merge=1` judges inputs in a process of their own.
    let program = std::env::current_exe().map_err(|err| err.to_string())?;
    let again = format!("{} hunt {}", program.display(), target.name);
    let arguments = [&[again.as_str()], arguments].concat();
    let arguments: Result<Vec<CString>, _> = arguments.into_iter().map(CString::new).collect();
    let arguments = arguments.map_err(|err| err.to_string())?;
    let mut pointers: Vec<*mut c_char> = arguments
        .iter()
        .map(|argument| argument.as_ptr().cast_mut())
        .collect();
    let mut count = c_int::try_from(pointers.len()).map_err(|err| err.to_string())?;
    pointers.push(std::ptr::null_mut());
    let mut argv = pointers.as_mut_ptr();
    // SAFETY: as `main`'s arguments: `count` strings that live as long as the call, then a null pointer.
    let status = unsafe { LLVMFuzzerRunDriver(&raw mut count, &raw mut argv, call) };
    if status == 0 {
        Ok(())
    } else {
        Err(format!("libFuzzer ended with {status}"))
    }
}

extern "C" fn call(data: *const u8, len: usize) -> c_int {
    let input = if len == 0 {
        &[]
    } else {
        // SAFETY: libFuzzer calls with a buffer of `len` bytes that lives as long as this call.
        unsafe { std::slice::from_raw_parts(data, len) }
    };
    if let Some(target) = TARGET.get() {
        bound::run(target, input);
    }
    0
}

//! The signals that end the holder, as they end Kubernetes' pause program: the first process of a PID namespace
//! ignores each signal for which it has no handler (pid_namespaces(7)).

use std::io;

/// Signals after which the holder exits with status 0.
const ENDING: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];

extern "C" fn exit(_signal: libc::c_int) {
    // SAFETY: takes a number only; may be called in a handler (signal-safety(7)), and runs no code of ours.
    unsafe { libc::_exit(0) }
}

/// Makes SIGINT and SIGTERM end this process with status 0.
///
/// # Errors
/// `sigaction(2)`'s.
pub(super) fn end_by_signals() -> io::Result<()> {
    for signal in ENDING {
        // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = exit as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `action` outlives the call, and its handler makes one system call that is signal-safe.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

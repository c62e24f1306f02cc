//! The end of a VMM that makes a system call it may not: one line and an exit status, from a signal's handler.
#![allow(unsafe_code, reason = "a signal's handler, and mallopt(3)")]

use std::cell::Cell;
use std::io::Write;

use vmm_sys_util::signal::register_signal_handler;

/// Exit status of a VMM that made a system call it may not, as a shell would show a death by `SIGSYS`.
pub const KILLED_STATUS: libc::c_int = 128 + libc::SIGSYS;

thread_local! {
    /// The thread's name for the handler's line. Constant initialiser and no destructor: a signal handler may read
    /// it.
    static NAME: Cell<&'static str> = const { Cell::new("(unknown)") };
}

/// Sets the name by which the handler's line calls this thread.
pub(super) fn set_thread_name(name: &'static str) {
    NAME.set(name);
}

/// Installs the handler of `SIGSYS`, for the whole process.
pub(super) fn handle() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(libc::SIGSYS, on_forbidden_call)
}

/// Makes glibc use one heap for all threads: another one grows by mprotect(2), and glibc opens a file of /proc, which
/// here is a path in the tenant's tree, before it shrinks it (malloc/arena.c, shrink_heap).
pub(super) fn use_one_heap() {
    // SAFETY: no memory of ours goes in; a value that glibc does not take changes nothing.
    let _taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// The start of `siginfo_t` as `SIGSYS` fills it in (Linux `include/uapi/asm-generic/siginfo.h`).
#[repr(C)]
struct ForbiddenCall {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    address: *mut libc::c_void,
    number: libc::c_int,
}

/// Handler of SIGSYS. Only writes and exits, which every thread may do, and takes no memory.
extern "C" fn on_forbidden_call(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands over a `siginfo_t`, which is larger, aligned and for SIGSYS as described.
    let number = unsafe { (*info.cast::<ForbiddenCall>()).number };
    let mut line = [0; 96];
    let mut rest = &mut line[..];
    let name = NAME.get();
    // A line that is cut off is good enough.
    let _cut = writeln!(
        rest,
        "wasmvm-vmm: thread {name} made system call {number}, which it may not"
    );
    let unused = rest.len();
    let length = line.len() - unused;
    // SAFETY: `line` is alive and has `length` bytes.
    let _written = unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
    // SAFETY: async-signal-safe, takes no memory.
    unsafe { libc::_exit(KILLED_STATUS) }
}

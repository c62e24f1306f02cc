//! The kick, and what else goes through `kvm_run`, the memory that a vCPU shares with KVM.
//!
//! A kick is a signal to the vCPU's thread. The signal's handler sets `kvm_run.immediate_exit`, so that a signal that
//! arrives just before `KVM_RUN` is not lost.
#![allow(unsafe_code, reason = "a signal's handler, and KVM's memory")]

use std::cell::Cell;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Installs the handler of the kick's signal, for the whole process.
pub(super) fn install_kick() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(SIGRTMIN(), on_kick)
}

/// A kick: takes the calling thread out of the guest, when another thread calls it.
pub(super) fn kick_this_thread() -> impl Fn() + Send {
    // SAFETY: no argument, cannot fail.
    let thread = unsafe { libc::pthread_self() };
    move || {
        // SAFETY: a kick is called only while the thread holds its pass, so the thread exists.
        let _sent = unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
    }
}

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. Constant initialiser and no
    /// destructor: a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Keeps [`IMMEDIATE_EXIT`] set while the vCPU is alive.
pub(super) struct ImmediateExit;

impl ImmediateExit {
    /// Lets kicks of this thread reach the vCPU, until the value is dropped.
    pub(super) fn of(fd: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: non-null only between `ImmediateExit::of` and its drop, both on this thread while
        // the vCPU, and so its mapping of `kvm_run`, is alive.
        unsafe { flag.write_volatile(1) };
    }
}

/// Suberror of an exit by `KVM_EXIT_INTERNAL_ERROR`; of another exit, any number.
pub(super) fn suberror(fd: &mut VcpuFd) -> u32 {
    let run = fd.get_kvm_run();
    // SAFETY: every member of the union begins with plain numbers, for which any bits are a value.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

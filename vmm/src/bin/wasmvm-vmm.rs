//! The VMM process. Started by the shim, which hands over everything the VMM may touch: see
//! [`wasmvm_protocol::control`] for the messages and [`wasmvm_vmm::jail`] for what the VMM gives up.

#![deny(unsafe_code)]

use wasmvm_protocol::control::CONTROL_FD;
use wasmvm_vmm::descriptors::inherited_control;
use wasmvm_vmm::library_log;
use wasmvm_vmm::report::Reporter;
use wasmvm_vmm::set_up::set_up;

/// Exit status of a VMM that was not started by the shim.
const USAGE_STATUS: i32 = 2;

fn main() {
    #[allow(
        unsafe_code,
        reason = "only the program knows who owns its descriptors"
    )]
    // SAFETY: nothing has been opened yet, and nothing else was given the descriptor.
    let control = unsafe { inherited_control() };
    let control = control.unwrap_or_else(|err| {
        eprintln!(
            "wasmvm-vmm is started by containerd-shim-wasmvm-v1: \
             descriptor {CONTROL_FD} is not its control socket: {err}"
        );
        std::process::exit(USAGE_STATUS)
    });
    let reporter = Reporter::new(control);
    library_log::install();
    report_panics(&reporter);
    let running = set_up(&reporter).unwrap_or_else(|err| reporter.boot_failed(&err));
    match running.serve(&reporter) {
        Ok(()) => std::process::exit(0),
        Err(err) => reporter.guest_ended(&err),
    }
}

/// Makes a panic of any thread the guest's end, reported to the shim: a VM with a thread missing would only hang.
fn report_panics(reporter: &Reporter) {
    let reporter = reporter.clone();
    std::panic::set_hook(Box::new(move |panic| reporter.panicked(panic)));
}

//! The VMM process. Started by the shim, which hands it all it may touch: see
//! [`wasmvm_protocol::control`] for the conversation and [`wasmvm_vmm::jail`] for what it gives up.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use wasmvm_protocol::control::CONTROL_FD;
use wasmvm_vmm::control::{Reporter, await_boot};
use wasmvm_vmm::jail;

fn main() {
    let reporter = match inherited_control() {
        Ok(reporter) => reporter,
        Err(err) => {
            eprintln!(
                "wasmvm-vmm is started by containerd-shim-wasmvm-v1: descriptor {CONTROL_FD} must be its control socket: {err}"
            );
            std::process::exit(2);
        }
    };
    jail::close_unknown_fds(CONTROL_FD).unwrap_or_else(|err| reporter.boot_failed(&err));
    let order = await_boot(reporter.socket()).unwrap_or_else(|err| reporter.boot_failed(&err));
    let jail = jail::close(reporter.socket()).unwrap_or_else(|err| reporter.boot_failed(&err));
    drop((order, jail));
    reporter.boot_failed(&std::io::Error::other("no machine yet"));
}

fn inherited_control() -> std::io::Result<Reporter> {
    // SAFETY: nothing else in this process was given the descriptor.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    rustix::net::getsockname(control.as_fd())?;
    Ok(Reporter::new(control))
}

//! The VMM process. Started by the shim, which hands over everything the VMM may touch: see
//! [`wasmvm_protocol::control`] for the messages and [`wasmvm_vmm::jail`] for what the VMM gives up.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use wasmvm_protocol::control::{CONTROL_FD, FromVmm, Role};
use wasmvm_protocol::ports::GUEST_CID;
use wasmvm_vmm::control::{answer_vsock_event, await_boot, serve};
use wasmvm_vmm::gate::Gate;
use wasmvm_vmm::jail::Inmate;
use wasmvm_vmm::report::{Reporter, note};
use wasmvm_vmm::seccomp::{self, Thread};
use wasmvm_vmm::virtio::VirtioDevice;
use wasmvm_vmm::virtio::fs::FsDevice;
use wasmvm_vmm::virtio::vsock::VsockDevice;
use wasmvm_vmm::{builder, file_server, jail, library_log};

/// Exit status of a VMM that was not started by the shim.
const USAGE_STATUS: i32 = 2;

fn main() {
    let reporter = inherited_control().unwrap_or_else(|err| {
        eprintln!(
            "wasmvm-vmm is started by containerd-shim-wasmvm-v1: \
             descriptor {CONTROL_FD} is not its control socket: {err}"
        );
        std::process::exit(USAGE_STATUS)
    });
    library_log::install();
    report_panics(&reporter);
    jail::close_unknown_fds(CONTROL_FD).unwrap_or_else(|err| reporter.boot_failed(&err));
    let (config, parts) =
        await_boot(reporter.socket()).unwrap_or_else(|err| reporter.boot_failed(&err));
    let jail =
        jail::close(reporter.socket(), &config).unwrap_or_else(|err| reporter.boot_failed(&err));
    // The file server leaves the process here, with all that the VMM keeps nothing of.
    let file_server = (config.role == Role::Task).then(|| {
        file_server::start(&jail, &config.credentials)
            .unwrap_or_else(|err| reporter.boot_failed(&err))
    });
    let landlock = jail
        .enter(Inmate::Vmm)
        .unwrap_or_else(|err| reporter.boot_failed(&err))
        .landlock;
    drop(jail);
    note(&landlock.to_string());

    // From here on no path is opened, and what a guest may do wrong stays in the jail.
    seccomp::enable().unwrap_or_else(|err| reporter.boot_failed(&err));
    let gate = Gate::default();
    let events = reporter.clone();
    let on_event = Box::new(move |event| answer_vsock_event(&events, event));
    let (vsock_device, vsock) = VsockDevice::new(GUEST_CID, &gate, on_event)
        .unwrap_or_else(|err| reporter.boot_failed(&err));
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(vsock_device)];
    if let Some(file_server) = file_server {
        let file_server = file_server
            .ready()
            .unwrap_or_else(|err| reporter.boot_failed(&err));
        let end = reporter.clone();
        let on_end = move |error: &(dyn Error + 'static)| end.guest_ended(error);
        let fs_device = FsDevice::new(file_server, &gate, on_end)
            .unwrap_or_else(|err| reporter.boot_failed(&err));
        devices.push(Box::new(fs_device));
    }
    let mut machine = builder::build(&config, parts, devices, &gate)
        .unwrap_or_else(|err| reporter.boot_failed(&err));

    // The guest runs when the last thread is confined, this one.
    reporter.listen_to(machine.console());
    gate.close(|_| {});
    let end = reporter.clone();
    let _vcpu = machine
        .start(move |why| end.guest_ended(&why))
        .unwrap_or_else(|err| reporter.boot_failed(&err));
    seccomp::confine(Thread::Main).unwrap_or_else(|err| reporter.boot_failed(&err));
    reporter.send(&FromVmm::Jailed);
    reporter.guest_starts();
    gate.open();

    let map_slot = |index, file: OwnedFd| machine.map_slot(index, &File::from(file));
    match serve(&reporter, &vsock, &gate, map_slot) {
        Ok(()) => std::process::exit(0),
        Err(err) => reporter.guest_ended(&err),
    }
}

/// Makes a panic of any thread the guest's end, reported to the shim: a VM with a thread missing would only hang.
fn report_panics(reporter: &Reporter) {
    let reporter = reporter.clone();
    std::panic::set_hook(Box::new(move |panic| reporter.panicked(panic)));
}

fn inherited_control() -> std::io::Result<Reporter> {
    // SAFETY: nothing else in this process was given the descriptor.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    rustix::net::getsockname(control.as_fd())?;
    Ok(Reporter::new(control))
}

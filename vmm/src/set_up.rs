//! The set-up of the VMM: one straight recipe, from the inherited control socket to a guest that runs.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use wasmvm_protocol::control::{CONTROL_FD, FromVmm, Role};
use wasmvm_protocol::ports::GUEST_CID;

use crate::builder::{self, BuildError, Machine};
use crate::control::{self, OrderError, answer_vsock_event, await_boot};
use crate::file_server::{self, StartError};
use crate::gate::Gate;
use crate::jail::{self, Inmate, JailError};
use crate::report::{Reporter, note};
use crate::seccomp::{self, SeccompError, Thread};
use crate::vcpu::{VcpuError, VcpuThread};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::FsDevice;
use crate::virtio::vsock::{VsockDevice, VsockHandle};

/// Why no guest runs. Each variant reads as the error of the part that failed.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The jail could not be closed or entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The first order did not come, or is not a Boot order.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The file server did not start.
    #[error(transparent)]
    FileServer(#[from] StartError),
    /// The list of system calls could not be installed.
    #[error(transparent)]
    Confine(#[from] SeccompError),
    /// The socket device got no descriptor or no thread.
    #[error(transparent)]
    Vsock(io::Error),
    /// The file system device got no descriptor or no thread.
    #[error(transparent)]
    Fs(io::Error),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The vCPU's thread did not start.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// A VMM whose guest runs.
#[derive(Debug)]
pub struct Running {
    machine: Machine,
    vsock: VsockHandle,
    gate: Gate,
    _vcpu: VcpuThread,
}

/// Sets up the VMM of the control socket behind `reporter`, as the shim's Boot order says, and lets the guest run.
///
/// Needs a process of one thread in which no object owns a descriptor above the control socket.
///
/// # Errors
/// [`SetUpError`]. What was set up before is dropped by then, and the process, which is half jailed, must end.
pub fn set_up(reporter: &Reporter) -> Result<Running, SetUpError> {
    jail::close_unknown_fds(CONTROL_FD)?;
    let (config, parts) = await_boot(reporter.socket())?;
    let jail = jail::close(reporter.socket(), &config)?;
    // The file server leaves the process here, with all that the VMM keeps nothing of.
    let file_server = match config.role {
        Role::Task => Some(file_server::start(&jail, &config.credentials)?),
        Role::Compiler => None,
    };
    let landlock = jail.enter(Inmate::Vmm)?.landlock;
    drop(jail);
    note(&landlock.to_string());

    // From here on no path is opened, and what a guest may do wrong stays in the jail.
    seccomp::enable()?;
    let gate = Gate::default();
    let events = reporter.clone();
    let on_event = Box::new(move |event| answer_vsock_event(&events, event));
    let (vsock_device, vsock) =
        VsockDevice::new(GUEST_CID, &gate, on_event).map_err(SetUpError::Vsock)?;
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(vsock_device)];
    if let Some(file_server) = file_server {
        let end = reporter.clone();
        let on_end = move |error: &(dyn Error + 'static)| end.guest_ended(error);
        let fs_device =
            FsDevice::new(file_server.ready()?, &gate, on_end).map_err(SetUpError::Fs)?;
        devices.push(Box::new(fs_device));
    }
    let mut machine = builder::build(&config, parts, devices, &gate)?;

    // The guest runs when the last thread is confined, this one.
    reporter.listen_to(machine.console());
    gate.close(|_| {});
    let end = reporter.clone();
    let vcpu = machine.start(move |why| end.guest_ended(&why))?;
    seccomp::confine(Thread::Main)?;
    reporter.send(&FromVmm::Jailed);
    reporter.guest_starts();
    gate.open();
    Ok(Running {
        machine,
        vsock,
        gate,
        _vcpu: vcpu,
    })
}

impl Running {
    /// Carries out the shim's orders until the shim closes its end of the control socket.
    ///
    /// # Errors
    /// [`OrderError`]: the VM must end.
    pub fn serve(&self, reporter: &Reporter) -> Result<(), OrderError> {
        let map_slot = |index, file: OwnedFd| self.machine.map_slot(index, &File::from(file));
        control::serve(reporter, &self.vsock, &self.gate, map_slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::KvmError;
    use crate::report::sentence;

    #[test]
    fn the_shim_is_told_the_sentence_of_the_part_that_failed() {
        let refused = || {
            let errno = kvm_ioctls::Error::new(libc::EINVAL);
            BuildError::Kvm(KvmError::of("KVM_CREATE_VM")(errno))
        };
        let meant = "KVM refuses the machine: KVM_CREATE_VM failed: Invalid argument (os error 22)";
        assert_eq!(sentence(&refused()), meant);
        assert_eq!(sentence(&SetUpError::from(refused())), meant);
        let no_memory = || io::Error::from_raw_os_error(libc::ENOMEM);
        let told = sentence(&SetUpError::Vsock(no_memory()));
        assert_eq!(told, sentence(&no_memory()));
    }
}

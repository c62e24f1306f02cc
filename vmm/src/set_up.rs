//! The set-up of the VMM: one straight recipe, from the inherited control socket to a guest that runs.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use wasmvm_protocol::control::{BootConfig, CONTROL_FD, FromVmm, Role};
use wasmvm_protocol::inspect::{Inspect, Node};
use wasmvm_protocol::ports::GUEST_CID;

use crate::arch::{self, DEVICES_MAX, GSI_FIRST, mmio_address};
use crate::boot::{self, BootError, BootParts};
use crate::bus::{MmioBus, SharedBus};
use crate::console::Console;
use crate::control::{self, OrderError, answer_vsock_event, await_boot};
use crate::file_server::{self, StartError};
use crate::gate::Gate;
use crate::jail::{self, Inmate, JailError};
use crate::kvm::{KvmError, open_kvm};
use crate::memory::{self, MemoryError};
use crate::report::{Reporter, note};
use crate::seccomp::{self, SeccompError, Thread};
use crate::vcpu::{Vcpu, VcpuError, VcpuThread};
use crate::virtio::fs::FsDevice;
use crate::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::virtio::vsock::{VsockDevice, VsockHandle};
use crate::virtio::{Interrupt, VirtioDevice};
use crate::vm::{SlotError, Vm};

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

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Guest RAM cannot be mapped or reserved.
    #[error("guest RAM cannot be set up")]
    Memory(#[source] MemoryError),
    /// Kernel, initramfs or the tables of the boot protocol cannot be loaded.
    #[error("the guest cannot be loaded")]
    Boot(#[source] BootError),
    /// KVM refused an ioctl that makes the VM or its vCPU.
    #[error("KVM refuses the machine")]
    Kvm(#[source] KvmError),
    /// More devices than interrupt lines.
    #[error("{0} devices; at most {DEVICES_MAX} are possible")]
    Devices(usize),
    /// The kernel gave no event descriptor for a device's line or queue.
    #[error("cannot create an event descriptor")]
    Event(#[source] io::Error),
}

/// A machine: its memory and what became of its parts.
#[derive(Debug)]
pub struct Machine {
    vm: Arc<Vm>,
    bus: SharedBus,
    console: Console,
    cpu: String,
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
    let (machine, vcpu) = build(&config, parts, devices, &gate)?;

    // The guest runs when the last thread is confined, this one.
    reporter.listen_to(machine.console.clone());
    gate.close(|_| {});
    let end = reporter.clone();
    let vcpu = vcpu.start(move |why| end.guest_ended(&why))?;
    seccomp::confine(Thread::Main)?;
    reporter.send(&FromVmm::Jailed {
        cpu: machine.cpu.clone(),
    });
    reporter.guest_starts();
    gate.open();
    Ok(Running {
        machine,
        vsock,
        gate,
        _vcpu: vcpu,
    })
}

/// Builds the machine; nothing runs yet. The vCPU will stand still while `gate` is closed, as do the devices, which
/// were made with the same gate.
///
/// # Errors
/// [`BuildError`].
pub fn build(
    config: &BootConfig,
    parts: BootParts,
    devices: Vec<Box<dyn VirtioDevice>>,
    gate: &Gate,
) -> Result<(Machine, Vcpu), BuildError> {
    if devices.len() > DEVICES_MAX {
        return Err(BuildError::Devices(devices.len()));
    }
    let kvm = open_kvm(parts.kvm).map_err(BuildError::Kvm)?;

    // RAM is filled before KVM sees it: files are mapped over parts of it.
    let memory = memory::allocate(config.ram_mib, config.huge_pages).map_err(BuildError::Memory)?;
    let entry = boot::load(
        &memory,
        &parts.kernel,
        &parts.initramfs,
        config,
        devices.len(),
    )
    .map_err(BuildError::Boot)?;

    // Interrupt controllers come with the VM, before the vCPU, which gets its local APIC by that.
    let vm = Vm::new(kvm, memory).map_err(BuildError::Kvm)?;
    let transports = devices
        .into_iter()
        .enumerate()
        .map(|(index, device)| connect(&vm, index, device))
        .collect::<Result<Vec<_>, _>>()?;

    let vcpu_fd = vm.create_vcpu().map_err(BuildError::Kvm)?;
    let cpu = arch::set_features(vm.kvm(), &vcpu_fd).map_err(BuildError::Kvm)?;
    entry.set_registers(&vcpu_fd).map_err(BuildError::Kvm)?;

    let console = Console::new(config.console);
    let vm = Arc::new(vm);
    let bus = SharedBus::from(MmioBus::new(transports));
    let vcpu = Vcpu::new(
        vcpu_fd,
        Arc::clone(&vm),
        bus.clone(),
        console.clone(),
        gate.clone(),
    );
    let machine = Machine {
        vm,
        bus,
        console,
        cpu,
    };
    Ok((machine, vcpu))
}

/// Puts a device on the bus: each queue's kick is an ioeventfd, the interrupt line is an irqfd.
fn connect(
    vm: &Vm,
    index: usize,
    device: Box<dyn VirtioDevice>,
) -> Result<MmioTransport, BuildError> {
    let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(BuildError::Event);
    let line = event()?;
    let gsi = (GSI_FIRST..).nth(index).unwrap_or(GSI_FIRST);
    vm.connect_line(&line, gsi).map_err(BuildError::Kvm)?;
    let mut kicks = Vec::new();
    for (number, _) in (0u32..).zip(device.queue_sizes()) {
        let kick = event()?;
        vm.wake_on_write(&kick, mmio_address(index) + QUEUE_NOTIFY, number)
            .map_err(BuildError::Kvm)?;
        kicks.push(kick);
    }
    Ok(MmioTransport::new(
        device,
        vm.memory().clone(),
        kicks,
        Interrupt::new(line),
    ))
}

impl Machine {
    /// Maps `file` as read-only slot `index`, while the guest runs or before.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn map_slot(&self, index: u32, file: &File) -> Result<(), SlotError> {
        self.vm.map_slot(index, file)
    }
}

impl Inspect for Machine {
    fn inspect(&self) -> Node {
        self.vm.inspect().with("devices", self.bus.inspect())
    }
}

impl Running {
    /// Carries out the shim's orders until the shim closes its end of the control socket.
    ///
    /// # Errors
    /// [`OrderError`]: the VM must end.
    pub fn serve(&self, reporter: &Reporter) -> Result<(), OrderError> {
        let map_slot = |index, file: OwnedFd| self.machine.map_slot(index, &File::from(file));
        control::serve(reporter, &self.vsock, &self.gate, &self.machine, map_slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

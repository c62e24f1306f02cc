//! The machine: one straight recipe.

use std::fs::File;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use wasmvm_protocol::control::BootConfig;

use crate::arch::{self, DEVICES_MAX, GSI_FIRST, mmio_address};
use crate::boot::{self, BootError, BootParts};
use crate::bus::MmioBus;
use crate::console::Console;
use crate::gate::Gate;
use crate::kvm::{KvmError, open_kvm};
use crate::memory::{self, MemoryError};
use crate::vcpu::{GuestEnd, Vcpu, VcpuError, VcpuThread};
use crate::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::virtio::{Interrupt, VirtioDevice};
use crate::vm::{SlotError, Vm};

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
    Event(#[source] std::io::Error),
}

/// A machine, not yet running.
#[derive(Debug)]
pub struct Machine {
    vm: Arc<Vm>,
    vcpu: Option<Vcpu>,
    console: Console,
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
) -> Result<Machine, BuildError> {
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
    arch::set_boot_state(vm.kvm(), &vcpu_fd, entry).map_err(BuildError::Kvm)?;

    let console = Console::new(config.console);
    let vm = Arc::new(vm);
    let vcpu = Vcpu::new(
        vcpu_fd,
        Arc::clone(&vm),
        MmioBus::new(transports),
        console.clone(),
        gate.clone(),
    );
    Ok(Machine {
        vm,
        vcpu: Some(vcpu),
        console,
    })
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
    /// Starts the guest; `on_end` is called once, on the vCPU's thread, when the guest has ended.
    ///
    /// # Errors
    /// [`VcpuError`]; [`VcpuError::Started`] the second time.
    pub fn start(
        &mut self,
        on_end: impl FnOnce(GuestEnd) + Send + 'static,
    ) -> Result<VcpuThread, VcpuError> {
        self.vcpu.take().ok_or(VcpuError::Started)?.start(on_end)
    }

    /// Maps `file` as read-only slot `index`, while the guest runs or before.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn map_slot(&self, index: u32, file: &File) -> Result<(), SlotError> {
        self.vm.map_slot(index, file)
    }

    /// The console, which keeps the last of what the guest's kernel printed.
    #[must_use]
    pub fn console(&self) -> Console {
        self.console.clone()
    }
}

//! The machine of the examples: 1 vCPU, the guest's console on standard error, no jail.

use std::error::Error;
use std::fs::File;

use wasmvm_protocol::control::{BootConfig, Credentials, Role};
use wasmvm_vmm::boot::BootParts;
use wasmvm_vmm::gate::Gate;
use wasmvm_vmm::set_up::{Machine, build};
use wasmvm_vmm::vcpu::Vcpu;
use wasmvm_vmm::virtio::VirtioDevice;

/// Builds it from the files of these names.
pub(super) fn machine(
    kernel: &str,
    initramfs: &str,
    ram_mib: u32,
    devices: Vec<Box<dyn VirtioDevice>>,
    gate: &Gate,
) -> Result<(Machine, Vcpu), Box<dyn Error>> {
    let config = BootConfig {
        role: Role::Task,
        ram_mib,
        huge_pages: false,
        console: true,
        credentials: Credentials::default(),
    };
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let parts = BootParts {
        kvm: kvm.into(),
        kernel: File::open(kernel)?,
        initramfs: File::open(initramfs)?,
    };
    Ok(build(&config, parts, devices, gate)?)
}

//! The kernel's command line.

use std::ffi::CString;

use wasmvm_protocol::control::{BootConfig, Role};

use crate::arch::x86_64::layout::{CMDLINE_BYTES_MAX, GSI_FIRST, mmio_address};

/// Parameters of every command line:
/// * panics and all other messages by the early-printk port, the only console;
/// * every end of the guest is a triple fault, which KVM reports (`reboot=k` would poll a keyboard controller);
/// * the initramfs stays where it is mapped: freeing it would fill it with poison, and every VM
///   would pay for its own copy of pages that all VMs share.
/// * no bounce buffers, which Linux would clear 64 MiB for as soon as RAM goes beyond 4 GiB.
const ALWAYS: &str =
    "earlyprintk=ttyS0,115200,keep reboot=t panic=-1 retain_initrd swiotlb=noforce";

/// A command line longer than the kernel takes.
#[derive(Debug, thiserror::Error)]
#[error("kernel command line of {0} bytes exceeds {CMDLINE_BYTES_MAX}")]
pub struct CmdlineError(usize);

/// The command line of a machine with `devices` virtio devices.
///
/// # Errors
/// [`CmdlineError`].
pub fn cmdline(config: &BootConfig, devices: usize) -> Result<CString, CmdlineError> {
    let mut line = String::from(ALWAYS);
    if !config.console {
        line.push_str(" quiet");
    }
    line.push_str(match config.role {
        Role::Task => " wasmvm.role=task",
        Role::Compiler => " wasmvm.role=compiler",
    });
    for (index, gsi) in (0..devices).zip(GSI_FIRST..) {
        line.push_str(&format!(
            " virtio_mmio.device=4K@{:#x}:{gsi}",
            mmio_address(index)
        ));
    }
    let bytes = line.len() + 1;
    match CString::new(line) {
        Ok(line) if bytes <= CMDLINE_BYTES_MAX => Ok(line),
        _ => Err(CmdlineError(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::DEVICES_MAX;
    use wasmvm_protocol::control::Credentials;

    fn config(role: Role, console: bool) -> BootConfig {
        BootConfig {
            role,
            ram_mib: 256,
            huge_pages: false,
            console,
            credentials: Credentials::default(),
        }
    }

    #[test]
    fn devices_and_role_are_named() {
        let line = cmdline(&config(Role::Task, false), 2)
            .unwrap()
            .into_string()
            .unwrap();
        assert!(line.contains(" quiet wasmvm.role=task "), "{line}");
        assert!(
            line.ends_with(
                " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
            ),
            "{line}"
        );
    }

    #[test]
    fn a_live_console_is_not_quiet() {
        let line = cmdline(&config(Role::Compiler, true), 0)
            .unwrap()
            .into_string()
            .unwrap();
        assert!(
            !line.contains("quiet") && line.ends_with("wasmvm.role=compiler"),
            "{line}"
        );
    }

    #[test]
    fn all_devices_fit() {
        assert!(cmdline(&config(Role::Compiler, true), DEVICES_MAX).is_ok());
    }
}

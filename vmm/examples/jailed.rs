//! Boots a guest by the real `wasmvm-vmm` in its jail, with a directory as its tree: stands in for the
//! shim. Needs root, `unshare` and `mount`.
//!
//! ```text
//! cargo run -p wasmvm-vmm --example jailed -- VMM KERNEL INITRAMFS TREE [RAM_MIB]
//! ```
//!
//! Prints what the VMM reports, in the order it comes; the guest's console goes to standard error. Ends
//! when the VMM closes its end.

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use wasmvm_protocol::control::{self, BootConfig, FromVmm, Role, ToVmm};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [vmm, kernel, initramfs, tree, rest @ ..] = arguments.as_slice() else {
        return Err("usage: jailed VMM KERNEL INITRAMFS TREE [RAM_MIB]".into());
    };
    let vmm = fs::canonicalize(vmm)?;
    let (control, vmm_end) = control::pair()?;
    let script = r#"mount --rbind . . && cd "$PWD" && exec 3<&0 && exec "$0" </dev/null"#;
    let mut outer = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--ipc", "--uts"])
        .args(["sh", "-ec", script])
        .arg(vmm)
        .current_dir(tree)
        .stdin(Stdio::from(vmm_end))
        .spawn()?;
    let started = Instant::now();

    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let (kernel, initramfs) = (File::open(kernel)?, File::open(initramfs)?);
    let boot = ToVmm::Boot(BootConfig {
        role: Role::Task,
        ram_mib: rest.first().map_or(Ok(256), |text| text.parse())?,
        huge_pages: false,
        console: true,
    });
    control::send(
        &control,
        &boot,
        &[kvm.as_fd(), kernel.as_fd(), initramfs.as_fd()],
    )?;
    while let Some((message, _)) = control::recv::<FromVmm>(&control)? {
        println!("{:>8.1?} {message:?}", started.elapsed());
        if message == FromVmm::NeedMaps {
            let pid = child_of(outer.id()).ok_or("the VMM is gone")?;
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), "0 0 4294967295\n")?;
            }
            control::send(&control, &ToVmm::MapsWritten, &[])?;
        }
    }
    println!("{}", outer.wait()?);
    Ok(())
}

/// The parent's PID is the second field behind the name (`proc(5)`, stat).
fn child_of(parent: u32) -> Option<String> {
    let parent = parent.to_string();
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_child = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit(") ").next().unwrap_or_default().to_owned();
        behind_name.split(' ').nth(1) == Some(&parent)
    };
    pids.filter(|pid| pid.starts_with(|c: char| c.is_ascii_digit()))
        .find(is_child)
}

//! Boots a kernel and an initramfs by hand: the machine without jail, shim and devices.
//!
//! ```text
//! cargo run -p wasmvm-vmm --example boot -- KERNEL INITRAMFS [RAM_MIB [SECONDS [SLOT_FILE]]]
//! ```
//!
//! The guest's console goes to standard error, line by line. At the guest's end, or after SECONDS (60), the
//! reason, the run time and the VMM's own memory are printed.

mod machine;

use std::error::Error;
use std::fs::{self, File};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use machine::machine;
use wasmvm_vmm::gate::Gate;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, rest @ ..] = arguments.as_slice() else {
        return Err("usage: boot KERNEL INITRAMFS [RAM_MIB [SECONDS [SLOT_FILE]]]".into());
    };
    let ram_mib = rest.first().map_or(Ok(256), |text| text.parse())?;
    let run_s_max = rest.get(1).map_or(Ok(60), |text| text.parse())?;

    let started = Instant::now();
    let (machine, vcpu) = machine(kernel, initramfs, ram_mib, Vec::new(), &Gate::default())?;
    if let Some(slot) = rest.get(2) {
        machine.map_slot(0, &File::open(slot)?)?;
    }
    println!("built after {:?}", started.elapsed());

    let (ended, end) = mpsc::channel();
    let started = Instant::now();
    vcpu.start(move |reason| drop(ended.send(reason)))?;
    let reason = end.recv_timeout(Duration::from_secs(run_s_max));
    println!("ran for {:?}", started.elapsed());
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        if line.starts_with("VmRSS") || line.starts_with("Rss") {
            println!("{line}");
        }
    }
    match reason {
        Ok(reason) => println!("{reason}"),
        Err(RecvTimeoutError::Timeout) => println!("the guest still runs"),
        Err(RecvTimeoutError::Disconnected) => println!("the vCPU's thread is gone"),
    }
    Ok(())
}

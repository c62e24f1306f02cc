//! A guest that carries streams and nothing else, and checks in sentences.

#[path = "../machine/mod.rs"]
mod machine;

use std::error::Error;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use wasmvm_protocol::ports::GUEST_CID;
use wasmvm_vmm::gate::Gate;
use wasmvm_vmm::set_up::Machine;
use wasmvm_vmm::virtio::vsock::{VsockDevice, VsockEvent, VsockHandle};

use machine::machine;

/// A guest that does not answer for so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const RAM_MIB: u32 = 256;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Says whether the sentence holds; the first that does not ends the run.
pub(crate) fn check(holds: bool, sentence: &str) -> Outcome {
    println!("{} {sentence}", if holds { "ok" } else { "FAILED" });
    if holds { Ok(()) } else { Err(sentence.into()) }
}

/// Starts the machine and waits until its guest listens. The guest's end is printed.
pub(crate) fn boot(
    kernel: &str,
    initramfs: &str,
    gate: &Gate,
) -> Outcome<(Machine, VsockHandle, Receiver<VsockEvent>)> {
    let (sender, events) = channel();
    let on_event = Box::new(move |event| drop(sender.send(event)));
    let (device, vsock) = VsockDevice::new(GUEST_CID, gate, on_event)?;
    let (machine, vcpu) = machine(kernel, initramfs, RAM_MIB, vec![Box::new(device)], gate)?;
    vcpu.start(|end| println!("{end}"))?;
    let ready = matches!(events.recv_timeout(PATIENCE)?, VsockEvent::AgentReady);
    check(ready, "the guest says that it listens")?;
    Ok((machine, vsock, events))
}

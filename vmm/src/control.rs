//! The shim's orders and what the VMM answers ([`wasmvm_protocol::control`] has the messages).
//!
//! The main thread ends in [`serve`]; every other thread answers through its clone of the [`Reporter`].

use std::error::Error;
use std::os::fd::{BorrowedFd, OwnedFd};

use wasmvm_protocol::control::{self, BootConfig, ControlError, FromVmm, ToVmm};
use wasmvm_protocol::inspect::Inspect;

use crate::boot::BootParts;
use crate::gate::{Closing, Gate};
use crate::report::{Reporter, sentence};
use crate::virtio::vsock::{VsockEvent, VsockHandle};

/// Why an order could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The socket failed, or a packet is no message.
    #[error("cannot receive an order")]
    Receive(#[source] ControlError),
    /// The shim closed the socket before its first order.
    #[error("the control socket ended before the Boot order")]
    NoBoot,
    /// An order that is not possible at this point: before Boot any other, afterwards a second Boot or MapsWritten.
    #[error("order {0} is not possible now")]
    OutOfTurn(String),
    /// The order came with too few or too many descriptors.
    #[error("order {order} came with {found} descriptors, not {meant}")]
    Descriptors {
        /// Name of the order.
        order: &'static str,
        /// Number of descriptors that came.
        found: usize,
        /// Number of descriptors that belong to the order.
        meant: usize,
    },
    /// The file cannot be mapped for the guest.
    #[error("cannot map the slot")]
    MapSlot(#[source] Box<dyn Error + Send + Sync>),
}

/// Waits for the first order, which must be Boot.
///
/// # Errors
/// [`OrderError`]; [`OrderError::OutOfTurn`] when another order came first.
pub fn await_boot(socket: BorrowedFd<'_>) -> Result<(BootConfig, BootParts), OrderError> {
    let received = control::recv::<ToVmm>(socket).map_err(OrderError::Receive)?;
    let (message, fds) = received.ok_or(OrderError::NoBoot)?;
    let ToVmm::Boot(config) = message else {
        return Err(OrderError::OutOfTurn(format!("{message:?}")));
    };
    let [kvm, kernel, initramfs] = exactly("Boot", fds)?;
    let parts = BootParts {
        kvm,
        kernel: kernel.into(),
        initramfs: initramfs.into(),
    };
    Ok((config, parts))
}

/// Carries out orders until the shim closes its end.
///
/// Connections are handed to the socket device, which answers by [`answer_vsock_event`]; a paused
/// machine stands at its `gate`. The state of `machine` is told at once, of a paused one too.
///
/// # Errors
/// [`OrderError`]: the shim's order makes no sense or cannot be carried out; the VM must end.
pub fn serve<E>(
    reporter: &Reporter,
    vsock: &VsockHandle,
    gate: &Gate,
    machine: &dyn Inspect,
    mut map_slot: impl FnMut(u32, OwnedFd) -> Result<(), E>,
) -> Result<(), OrderError>
where
    E: Error + Send + Sync + 'static,
{
    while let Some((message, fds)) =
        control::recv::<ToVmm>(reporter.socket()).map_err(OrderError::Receive)?
    {
        match message {
            ToVmm::MapSlot { id, index } => {
                let [file] = exactly("MapSlot", fds)?;
                map_slot(index, file).map_err(|source| OrderError::MapSlot(source.into()))?;
                reporter.send(&FromVmm::Done { id });
            }
            ToVmm::Connect { id, port } => {
                let [stream] = exactly("Connect", fds)?;
                refuse_if_failed(reporter, id, vsock.connect(id, port, stream));
            }
            ToVmm::Sink {
                id,
                port,
                bytes_max,
            } => {
                let [file] = exactly("Sink", fds)?;
                refuse_if_failed(reporter, id, vsock.sink(id, port, file.into(), bytes_max));
            }
            ToVmm::Pause { id } => {
                let [] = exactly("Pause", fds)?;
                let answers = reporter.clone();
                gate.close(move |closing| answers.send(&pause_answer(id, closing)));
            }
            ToVmm::Resume { id } => {
                let [] = exactly("Resume", fds)?;
                gate.open();
                reporter.send(&FromVmm::Done { id });
            }
            ToVmm::Inspect { id } => {
                let [] = exactly("Inspect", fds)?;
                let state = machine.inspect().with("gate", gate.inspect());
                reporter.send(&FromVmm::Inspected { id, state });
            }
            ToVmm::Boot(_) | ToVmm::MapsWritten => {
                return Err(OrderError::OutOfTurn(format!("{message:?}")));
            }
        }
    }
    Ok(())
}

/// Answers the shim with an event of the socket device.
pub fn answer_vsock_event(reporter: &Reporter, event: VsockEvent) {
    let message = match event {
        VsockEvent::AgentReady => FromVmm::AgentReady {
            boot_us: reporter.since_guest_start_us(),
        },
        VsockEvent::Connected { id } => FromVmm::Connected { id },
        VsockEvent::Refused { id, reason } => FromVmm::Refused {
            id,
            reason: sentence(&reason),
        },
        VsockEvent::SinkDone { id, bytes } => FromVmm::SinkDone { id, bytes },
        VsockEvent::SinkFailed { id, reason } => FromVmm::SinkFailed {
            id,
            reason: sentence(&reason),
        },
        VsockEvent::Stopped(reason) => reporter.guest_ended(&reason),
    };
    reporter.send(&message);
}

fn refuse_if_failed<E: Error + 'static>(reporter: &Reporter, id: u32, result: Result<(), E>) {
    if let Err(err) = result {
        reporter.send(&FromVmm::Refused {
            id,
            reason: sentence(&err),
        });
    }
}

fn pause_answer(id: u32, closing: Closing) -> FromVmm {
    match closing {
        Closing::Done => FromVmm::Done { id },
        Closing::Cancelled => FromVmm::Refused {
            id,
            reason: "the guest was resumed before it had stopped".into(),
        },
    }
}

fn exactly<const N: usize>(
    order: &'static str,
    fds: Vec<OwnedFd>,
) -> Result<[OwnedFd; N], OrderError> {
    <[OwnedFd; N]>::try_from(fds).map_err(|fds| OrderError::Descriptors {
        order,
        found: fds.len(),
        meant: N,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::vsock::VsockDevice;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;
    use wasmvm_protocol::control::{Credentials, Role};
    use wasmvm_protocol::inspect::Node;

    fn boot() -> ToVmm {
        ToVmm::Boot(BootConfig {
            role: Role::Task,
            ram_mib: 256,
            huge_pages: false,
            console: true,
            credentials: Credentials::default(),
        })
    }

    #[test]
    fn boot_needs_its_three_descriptors() {
        let (shim, vmm) = control::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        control::send(&shim, &boot(), &[fd, fd, fd]).unwrap();
        assert_eq!(await_boot(vmm.as_fd()).unwrap().0.ram_mib, 256);
        control::send(&shim, &boot(), &[fd]).unwrap();
        let error = await_boot(vmm.as_fd()).unwrap_err().to_string();
        assert_eq!(error, "order Boot came with 1 descriptors, not 3");
        control::send(&shim, &ToVmm::MapsWritten, &[]).unwrap();
        assert!(matches!(
            await_boot(vmm.as_fd()),
            Err(OrderError::OutOfTurn(_))
        ));
        drop(shim);
        assert!(matches!(await_boot(vmm.as_fd()), Err(OrderError::NoBoot)));
    }

    struct Machine;

    impl Inspect for Machine {
        fn inspect(&self) -> Node {
            Node::new().with("ram_mib", 256_u32)
        }
    }

    /// What `serve` makes of one message with `fds` descriptors; the shim's end is closed after it.
    fn served(message: &ToVmm, fds: usize) -> (Result<(), OrderError>, Vec<FromVmm>) {
        let (shim, vmm) = control::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        control::send(&shim, message, &vec![null.as_fd(); fds]).unwrap();
        rustix::net::shutdown(&shim, rustix::net::Shutdown::Write).unwrap();
        let gate = Gate::default();
        let (_device, vsock) = VsockDevice::new(3, &gate, Box::new(|_| {})).unwrap();
        let map_slot = |_index, file: OwnedFd| match rustix::fs::fstat(&file) {
            Ok(_) => Ok::<(), io::Error>(()),
            Err(errno) => Err(errno.into()),
        };
        let result = serve(&Reporter::new(vmm), &vsock, &gate, &Machine, map_slot);
        let answers = std::iter::from_fn(|| control::hear(&shim).unwrap());
        (result, answers.collect())
    }

    #[test]
    fn orders_are_carried_out_until_the_shim_is_gone() {
        let (result, answers) = served(&ToVmm::MapSlot { id: 4, index: 0 }, 1);
        assert!(result.is_ok());
        assert_eq!(answers, [FromVmm::Done { id: 4 }]);
        let connect = ToVmm::Connect { id: 1, port: 1024 };
        let (result, answers) = served(&connect, 1);
        assert!(result.is_ok() && answers.is_empty(), "{answers:?}");
    }

    #[test]
    fn pause_and_resume_are_answered_by_their_id() {
        for (order, id) in [(ToVmm::Pause { id: 8 }, 8), (ToVmm::Resume { id: 9 }, 9)] {
            let (result, answers) = served(&order, 0);
            assert!(result.is_ok());
            assert_eq!(answers, [FromVmm::Done { id }]);
        }
        let refused = pause_answer(3, Closing::Cancelled);
        assert!(matches!(refused, FromVmm::Refused { id: 3, .. }));
    }

    #[test]
    fn the_state_of_the_machine_is_told_with_that_of_the_gate() {
        let (result, answers) = served(&ToVmm::Inspect { id: 5 }, 0);
        assert!(result.is_ok());
        let [FromVmm::Inspected { id: 5, state }] = answers.as_slice() else {
            panic!("{answers:?}");
        };
        assert_eq!(state.find("ram_mib"), Some(256_u32.into()));
        assert_eq!(state.find("gate/closed"), Some(false.into()));
    }

    #[test]
    fn orders_that_make_no_sense_end_the_vm() {
        let (result, answers) = served(&ToVmm::MapSlot { id: 4, index: 0 }, 2);
        assert!(matches!(
            result,
            Err(OrderError::Descriptors {
                found: 2,
                meant: 1,
                ..
            })
        ));
        assert!(answers.is_empty(), "{answers:?}");
        let (result, _) = served(&boot(), 3);
        assert!(matches!(result, Err(OrderError::OutOfTurn(_))));
    }
}

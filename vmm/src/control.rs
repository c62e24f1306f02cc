//! The shim's orders and what the VMM answers ([`wasmvm_protocol::control`] has the messages).
//!
//! The main thread ends in [`serve`]; every other thread reports through its clone of the [`Reporter`].
//! One packet is one message, so no lock is needed.

use std::error::Error;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use wasmvm_protocol::control::{
    self, BootConfig, CONSOLE_TAIL_BYTES_MAX, ControlError, FromVmm, ToVmm,
};

use crate::builder::BootParts;
use crate::console::Console;
use crate::gate::{Closing, Gate};
use crate::virtio::vsock::{VsockEvent, VsockHandle};

/// Longest sentence of a report, bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;

/// Exit status when the guest ended, or never began, before the shim closed the control socket.
const ENDED_STATUS: i32 = 1;

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
/// Connections are handed to the socket device, which answers by [`Reporter::vsock_event`]; a paused
/// machine stands at its `gate`.
///
/// # Errors
/// [`OrderError`]: the shim's order makes no sense or cannot be carried out; the VM must end.
pub fn serve<E>(
    reporter: &Reporter,
    vsock: &VsockHandle,
    gate: &Gate,
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
                reporter.refuse_if_failed(id, vsock.connect(id, port, stream));
            }
            ToVmm::Sink {
                id,
                port,
                bytes_max,
            } => {
                let [file] = exactly("Sink", fds)?;
                reporter.refuse_if_failed(id, vsock.sink(id, port, file.into(), bytes_max));
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
            ToVmm::Boot(_) | ToVmm::MapsWritten => {
                return Err(OrderError::OutOfTurn(format!("{message:?}")));
            }
        }
    }
    Ok(())
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

/// Sends reports to the shim, from any thread.
#[derive(Clone, Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    guest_started: OnceLock<Instant>,
    console: OnceLock<Console>,
}

impl Reporter {
    /// Takes over the control socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            shared: Arc::new(Shared {
                socket,
                guest_started: OnceLock::new(),
                console: OnceLock::new(),
            }),
        }
    }

    /// The control socket, for receiving.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }

    /// Sends a message. [`serve`] notices a shim that has closed the socket, so a failure is only logged.
    pub fn send(&self, message: &FromVmm) {
        if let Err(err) = control::tell(self.socket(), message) {
            note(&sentence(&err));
        }
    }

    /// Sets the console whose last bytes [`Reporter::guest_ended`] reports.
    pub fn listen_to(&self, console: Console) {
        let _already_set = self.shared.console.set(console);
    }

    /// Marks the first entry into the guest, from which boot times are measured.
    pub fn guest_starts(&self) {
        let _already_set = self.shared.guest_started.set(Instant::now());
    }

    /// Sends an event of the socket device to the shim.
    pub fn vsock_event(&self, event: VsockEvent) {
        let message = match event {
            VsockEvent::AgentReady => FromVmm::AgentReady {
                boot_us: self.since_start_us(),
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
            VsockEvent::Stopped(reason) => self.guest_ended(&reason),
        };
        self.send(&message);
    }

    /// Reports why set-up failed, and ends the process.
    pub fn boot_failed(&self, error: &(dyn Error + 'static)) -> ! {
        let reason = sentence(error);
        self.send(&FromVmm::BootFailed {
            reason: reason.clone(),
        });
        note(&reason);
        std::process::exit(ENDED_STATUS)
    }

    /// Reports why the guest ended, with the last bytes of its console, and ends the process.
    pub fn guest_ended(&self, error: &(dyn Error + 'static)) -> ! {
        let console = self.shared.console.get().map(Console::tail);
        self.ended(&sentence(error), &console.unwrap_or_default())
    }

    /// Reports a thread's panic as the guest's end. Leaves the console out, as the thread may hold the console's
    /// lock.
    pub fn panicked(&self, panic: &std::panic::PanicHookInfo<'_>) -> ! {
        let mut reason = format!("the VMM has a bug: {panic}").replace('\n', " ");
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        self.ended(&reason, "")
    }

    fn ended(&self, reason: &str, console: &str) -> ! {
        let console_tail = console_tail(console);
        self.send(&FromVmm::GuestEnded {
            reason: reason.to_owned(),
            console_tail,
        });
        note(&format!("guest ended: {reason}"));
        std::process::exit(ENDED_STATUS)
    }

    fn refuse_if_failed<E: Error + 'static>(&self, id: u32, result: Result<(), E>) {
        if let Err(err) = result {
            self.send(&FromVmm::Refused {
                id,
                reason: sentence(&err),
            });
        }
    }

    fn since_start_us(&self) -> u64 {
        let started = self.shared.guest_started.get();
        let elapsed = started.map(Instant::elapsed).unwrap_or_default();
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Writes a line to standard error. The shim may have closed the other end, which is no reason to panic.
pub fn note(text: &str) {
    let _closed = writeln!(io::stderr(), "{text}");
}

/// An error and its causes, in one line of at most [`REASON_BYTES_MAX`] bytes.
#[must_use]
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = wasmvm_protocol::error_chain(error);
    if text.len() > REASON_BYTES_MAX {
        text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    }
    text
}

/// The end of the console as text that fits a message: a control character would take six bytes in
/// JSON, and the guest may write 4096 of them.
fn console_tail(console: &str) -> String {
    let start = console.len().saturating_sub(CONSOLE_TAIL_BYTES_MAX);
    let tail = &console[console.ceil_char_boundary(start)..];
    let plain = |c: char| match c {
        '\n' | '\t' => c,
        _ if c.is_control() => '.',
        _ => c,
    };
    tail.chars().map(plain).collect()
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::vsock::VsockDevice;
    use proptest::prelude::*;
    use std::fs::File;
    use wasmvm_protocol::control::{CONTROL_BYTES_MAX, Credentials, Role};

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

    #[test]
    fn causes_are_part_of_the_sentence() {
        let io = io::Error::from_raw_os_error(libc::ENOENT);
        let text = sentence(&OrderError::MapSlot(Box::new(io)));
        assert_eq!(
            text,
            "cannot map the slot: No such file or directory (os error 2)"
        );
        let long = OrderError::OutOfTurn("ü".repeat(REASON_BYTES_MAX));
        assert!(sentence(&long).len() <= REASON_BYTES_MAX);
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
        let result = serve(&Reporter::new(vmm), &vsock, &gate, map_slot);
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_console_fits_one_message(
            console in "[\\x00\"\n\\\\a\\u{fffd}]{0,6000}"
        ) {
            let message = FromVmm::GuestEnded {
                reason: "\"".repeat(REASON_BYTES_MAX),
                console_tail: console_tail(&console),
            };
            let encoded = serde_json::to_vec(&message).unwrap();
            prop_assert!(encoded.len() <= CONTROL_BYTES_MAX, "{}", encoded.len());
        }
    }
}

//! Reports to the shim and to standard error: why set-up failed, why the guest ended.
//!
//! Every thread reports through its clone of the [`Reporter`]. One packet is one message, so no lock is needed.

use std::error::Error;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use wasmvm_protocol::control::{self, CONSOLE_TAIL_BYTES_MAX, FromVmm};

use crate::console::Console;

/// Longest sentence of a report, bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;

/// Exit status when the guest ended, or never began, before the shim closed the control socket.
const ENDED_STATUS: i32 = 1;

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

    /// Sends a message. A shim that has closed the socket ends [`crate::control::serve`], so a failure is only
    /// logged.
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

    /// Microseconds since [`Reporter::guest_starts`]; 0 before it.
    #[must_use]
    pub fn since_guest_start_us(&self) -> u64 {
        let started = self.shared.guest_started.get();
        let elapsed = started.map(Instant::elapsed).unwrap_or_default();
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
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
    use crate::control::OrderError;
    use proptest::prelude::*;
    use wasmvm_protocol::control::CONTROL_BYTES_MAX;

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

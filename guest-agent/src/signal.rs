//! Signals: the numbers that exist, sending one to a process that cannot be another one, and what the
//! process itself does with those that it gets.
#![allow(
    unsafe_code,
    reason = "signal(2), and pidfd_send_signal(2) with a realtime signal"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::Signal;

/// A signal that can be sent: 1 to 64, the realtime ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalNumber(u8);

impl SignalNumber {
    /// `None` for what is no signal.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        match u8::try_from(number) {
            Ok(number @ 1..=64) => Some(Self(number)),
            _ => None,
        }
    }

    /// The number of SIGKILL.
    #[must_use]
    pub fn kill() -> Self {
        Self(9)
    }

    /// Whether the signal ends the process for certain.
    #[must_use]
    pub fn is_kill(self) -> bool {
        i32::from(self.0) == Signal::KILL.as_raw()
    }

    /// Sends the signal to the process of a pidfd.
    ///
    /// # Errors
    /// `pidfd_send_signal(2)`'s; `ESRCH` when the process is gone.
    pub fn send(self, process: BorrowedFd<'_>) -> io::Result<()> {
        let (fd, number) = (process.as_raw_fd(), i32::from(self.0));
        // SAFETY: takes two numbers and two zeros; the descriptor is open.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, 0, 0) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// A write to a gone reader is an error of that write. (Rust's own start-up would do this, see `main.rs`.)
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition, and nothing in this program relies on another one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Signals as a fresh system has them, whatever the parent ignores: exec resets handlers, but keeps what is
/// ignored. For a child between fork and exec: async-signal-safe.
pub fn reset_dispositions() {
    for signal in 1..=libc::SIGSYS {
        // SAFETY: the default disposition is valid for all; SIGKILL's and SIGSTOP's stay as they are.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_1_to_64() {
        assert_eq!(SignalNumber::new(0), None);
        assert_eq!(SignalNumber::new(15), Some(SignalNumber(15)));
        assert!(SignalNumber::new(64).is_some());
        assert_eq!(SignalNumber::new(65), None);
        assert_eq!(SignalNumber::new(256 + 9), None);
    }

    #[test]
    fn only_sigkill_is_certain() {
        assert_eq!(SignalNumber::new(9), Some(SignalNumber::kill()));
        assert!(SignalNumber::kill().is_kill());
        assert!(!SignalNumber(15).is_kill());
    }
}

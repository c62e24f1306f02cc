//! The end of a child process.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

use crate::spawn::Child;

/// Added to a signal's number in the status of a process that it ended, as shells do.
const SIGNALLED: u32 = 128;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// The process ended itself, with this code.
    Exited(u32),
    /// A signal ended the process: this one.
    Signalled(u32),
}

impl ProcessEnd {
    /// The end by SIGKILL.
    pub const KILLED: Self = Self::Signalled(9);

    /// The exit code, or 128+n.
    #[must_use]
    pub fn status(self) -> u32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => SIGNALLED + signal,
        }
    }

    /// Whether the process was ended by SIGKILL.
    #[must_use]
    pub fn is_kill(self) -> bool {
        self == Self::KILLED
    }
}

/// Waits for a child's end.
///
/// # Errors
/// `waitid(2)`'s.
pub async fn reap(process: &AsyncFd<Child>) -> io::Result<ProcessEnd> {
    let _ended = process.readable().await?;
    let process = WaitId::PidFd(process.get_ref().as_fd());
    let status = rustix::process::waitid(process, WaitIdOptions::EXITED)?
        .ok_or(io::ErrorKind::WouldBlock)?;
    let signal = status.terminating_signal().unwrap_or_default();
    Ok(match status.exit_status() {
        Some(code) => ProcessEnd::Exited(code.unsigned_abs()),
        None => ProcessEnd::Signalled(signal.unsigned_abs()),
    })
}

//! Fork and exec of this same binary in another mode, with exactly the descriptors it is to have; and the
//! end of that process.
//!
//! ```text
//!  0 1 2  stdio: the streams' own sockets, the null device, or a terminal
//!  3      the slots' device, read-only
//!  4      runner: what it works on ([`crate::work`]) · compile: the artifact (memfd)
//!  5      report pipe ([`crate::report`])
//!  6      runner: start pipe, one byte means go
//! ```
#![allow(
    unsafe_code,
    reason = "what runs between fork and exec, and descriptors by number"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::signal;
use crate::watch::watch;

/// First argument of a runner.
pub const RUNNER_MODE: &str = "runner";
/// First argument of a compile.
pub const COMPILE_MODE: &str = "compile";

/// The slots' device, read-only.
pub const SLOT_FD: RawFd = 3;
/// The file that the child works on: the program, or the artifact's place.
pub const WORK_FD: RawFd = 4;
/// Write end of the report pipe.
pub const REPORT_FD: RawFd = 5;
/// Read end of the start pipe.
pub const START_FD: RawFd = 6;

/// Above every descriptor of a child, so that none is overwritten while they are put in place.
const PARKED_FD_MIN: RawFd = 16;
/// Most descriptors that a child gets beyond stdio.
const PASSED_FDS_MAX: usize = 4;
/// Added to a signal's number in the status of a process that it ended, as shells do.
const SIGNALLED: u32 = 128;

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields say what they are")]
pub enum SpawnError {
    /// Out of descriptors, processes or memory.
    #[error("cannot prepare descriptors of a {mode} process")]
    Descriptors {
        mode: &'static str,
        #[source]
        source: io::Error,
    },
    /// fork or exec failed.
    #[error("cannot start a {mode} process")]
    Exec {
        mode: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A child process; dropped, it is ended and reaped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// The child's process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The child in the runtime's event loop, which says when it has ended.
    ///
    /// # Errors
    /// `epoll_ctl(2)`'s; the child is ended then.
    pub fn watch(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the pidfd stays open and the same until the child is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }
}

impl AsRawFd for Child {
    /// The pidfd: readable when the process has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A pidfd names one process for ever: both calls fail harmlessly if it was reaped before. A process
/// that waits for the host's file server ends only when that answers, so nobody waits for it here.
impl Drop for Child {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Ok(None) = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), ended)
            && let Ok(pidfd) = self.pidfd.try_clone()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(reap_late(pidfd));
        }
    }
}

async fn reap_late(pidfd: OwnedFd) {
    let Ok(pidfd) = watch(pidfd) else { return };
    let _ = pidfd.readable().await;
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), ended);
}

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

/// How a child starts.
#[derive(Debug)]
pub struct Start<'a> {
    /// The agent's own binary.
    pub exe: &'a Path,
    /// First argument of the binary.
    pub mode: &'static str,
    /// Arguments behind the mode.
    pub args: &'a [String],
    /// The descriptors to be 0, 1 and 2.
    pub stdio: [OwnedFd; 3],
    /// The descriptors to be 3, 4, ….
    pub passed: Vec<OwnedFd>,
    /// `stdio` is a terminal, to be the controlling one of a session of its own.
    pub terminal: bool,
}

/// Starts a child with exactly the given descriptors.
///
/// The child's signal dispositions are the default ones and its mask is empty, whatever the agent's are.
///
/// # Errors
/// [`SpawnError`]; nothing is left behind.
pub fn spawn(start: Start<'_>) -> Result<Child, SpawnError> {
    let Start {
        exe,
        mode,
        args,
        stdio,
        passed,
        terminal,
    } = start;
    let prepare = |source| SpawnError::Descriptors { mode, source };
    if passed.len() > PASSED_FDS_MAX {
        return Err(prepare(io::ErrorKind::InvalidInput.into()));
    }
    let mut parked = Vec::with_capacity(passed.len());
    for fd in passed {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, PARKED_FD_MIN)
            .map_err(|errno| prepare(errno.into()))?;
        parked.push(fd);
    }
    let [stdin, stdout, stderr] = stdio;
    let mut command = Command::new(exe);
    command
        .arg(mode)
        .args(args)
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr));
    let sources: Vec<RawFd> = parked.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure only makes async-signal-safe system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if terminal {
                control_terminal()?;
            }
            place(&sources)
        })
    };
    let child = command
        .spawn()
        .map_err(|source| SpawnError::Exec { mode, source })?;
    let pid = Pid::from_child(&child);
    // It cannot be reaped and its id reused before `pidfd` exists: only that reaps it.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        prepare(errno.into())
    })?;
    Ok(Child { pid, pidfd })
}

/// In the child: a session of its own, with descriptor 0 as its controlling terminal and itself in the
/// foreground, so that ^C ends it.
fn control_terminal() -> io::Result<()> {
    rustix::process::setsid()?;
    // std has put the terminal at 0 by now.
    Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
}

/// In the child: the parked descriptors go to 3, 4, …; nothing above survives exec.
fn place(sources: &[RawFd]) -> io::Result<()> {
    signal::reset_dispositions();
    let mut target = SLOT_FD;
    for &source in sources {
        // SAFETY: `source` is open and at least PARKED_FD_MIN; nothing of ours lives at `target`
        // in this child but the copy that exec makes permanent.
        if unsafe { libc::dup2(source, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
        target += 1;
    }
    // SAFETY: only marks descriptors close-on-exec.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            target,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes over a descriptor that the parent put in place beyond stdio.
///
/// # Errors
/// `EBADF` when the parent put none there, or when it was taken before.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks for the flags of a number; what it names, if anything, stays as it is.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    // What this program itself opens is close-on-exec, and so is what was taken.
    if fd < SLOT_FD || flags != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: open, from before exec, so that nothing in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn what_the_parent_passed_is_taken_once_and_nothing_else_is() {
        let (passed, _write) = rustix::pipe::pipe().unwrap();
        let number = passed.into_raw_fd();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(take(number).is_err());
        let own = io::stderr().as_fd().try_clone_to_owned().unwrap();
        assert!(take(own.as_raw_fd()).is_err());
        assert!(take(libc::STDERR_FILENO).is_err());
        assert!(take(RawFd::MAX).is_err());
    }
}

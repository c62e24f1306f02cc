//! One instance: a runner process and what became of it.
//!
//! ```text
//!            start                    exit
//!  Created ─────────► Running ─────────────────► Stopped
//!     └───────────────────────────────────────────►
//!                 exit (killed before Start)
//! ```
//!
//! Only [`Instance::start`] and the one task that waits for the process change the phase.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::process::{Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::AgentError;
use crate::spawn::Child;

/// Added to a signal's number in the status of a process that it ended, as shells do.
const SIGNALLED: u32 = 128;

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

    fn send(self, process: BorrowedFd<'_>) -> io::Result<()> {
        let (fd, number) = (process.as_raw_fd(), i32::from(self.0));
        // SAFETY: takes two numbers and two zeros; the descriptor is open.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, 0, 0) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255.
    pub status: u32,
    /// By the guest's wall clock.
    pub at: SystemTime,
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Loaded, waiting for Start.
    Created,
    /// Its program runs.
    Running,
    /// Its process is gone.
    Stopped(Exit),
}

impl Phase {
    /// For sentences.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }

    /// The one place where phases change; `None` if the event does not fit.
    fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Created, Event::Start) => Some(Self::Running),
            (Self::Created | Self::Running, Event::Exit(exit)) => Some(Self::Stopped(exit)),
            (Self::Running | Self::Stopped(_), Event::Start)
            | (Self::Stopped(_), Event::Exit(_)) => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Start,
    Exit(Exit),
}

/// A loaded program.
#[derive(Debug)]
pub struct Instance {
    name: String,
    process: AsyncFd<Child>,
    start: Mutex<Option<OwnedFd>>,
    phase: watch::Sender<Phase>,
}

impl Instance {
    /// A runner that has reported to be ready; `start` is the write end of its start pipe.
    #[must_use]
    pub fn new(name: String, process: AsyncFd<Child>, start: OwnedFd) -> Self {
        Self {
            name,
            process,
            start: Mutex::new(Some(start)),
            phase: watch::Sender::new(Phase::Created),
        }
    }

    /// The runner's process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.get_ref().pid()
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// [`AgentError::Phase`] unless it waits for that.
    pub fn start(&self) -> Result<(), AgentError> {
        if !self.advance(Event::Start) {
            return Err(AgentError::Phase {
                action: "start",
                id: self.name.clone(),
                phase: self.phase().name(),
            });
        }
        let pipe = self.lock_start().take();
        // A runner that was just killed cannot be told; its exit tells.
        if let Some(pipe) = pipe {
            let _ = rustix::io::write(pipe, b"!");
        }
        Ok(())
    }

    /// Sends a signal; the default actions end a runner, whatever its module does.
    ///
    /// # Errors
    /// [`AgentError::Ended`] when there is nothing left to signal.
    pub fn kill(&self, signal: SignalNumber) -> Result<(), AgentError> {
        if matches!(self.phase(), Phase::Stopped(_)) {
            return Err(AgentError::Ended(self.name.clone()));
        }
        match signal.send(self.process.get_ref().as_fd()) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(AgentError::Ended(self.name.clone()))
            }
            Err(error) => Err(AgentError::System("signal the runner", error)),
        }
    }

    /// How it ended, as soon as it has.
    pub async fn wait(&self) -> Exit {
        let mut phases = self.phase.subscribe();
        loop {
            if let Phase::Stopped(exit) = *phases.borrow_and_update() {
                return exit;
            }
            // The sender lives in `self`, so there is always another change to wait for.
            let _ = phases.changed().await;
        }
    }

    /// Waits for the process and records its end; to be run once per instance.
    pub async fn reap(&self) {
        let status = reap(&self.process).await;
        self.lock_start().take();
        self.advance(Event::Exit(Exit {
            status: status.unwrap_or(SIGNALLED + Signal::KILL.as_raw().unsigned_abs()),
            at: SystemTime::now(),
        }));
    }

    fn advance(&self, event: Event) -> bool {
        self.phase.send_if_modified(|phase| {
            let next = phase.after(event);
            if let Some(next) = next {
                *phase = next;
            }
            next.is_some()
        })
    }

    fn lock_start(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a child's end; its exit code, or 128+n.
///
/// # Errors
/// `waitid(2)`'s.
pub async fn reap(process: &AsyncFd<Child>) -> io::Result<u32> {
    let _ended = process.readable().await?;
    let process = WaitId::PidFd(process.get_ref().as_fd());
    let status = rustix::process::waitid(process, WaitIdOptions::EXITED)?
        .ok_or(io::ErrorKind::WouldBlock)?;
    let signal = status.terminating_signal().unwrap_or_default();
    Ok(match status.exit_status() {
        Some(code) => code.unsigned_abs(),
        None => SIGNALLED + signal.unsigned_abs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    const TERM: SignalNumber = SignalNumber(15);
    const KILL: SignalNumber = SignalNumber(9);

    fn instance(script: &str) -> (Arc<Instance>, OwnedFd) {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let child = crate::spawn::spawn(
            Path::new("/bin/sh"),
            "-c",
            &[script.to_owned()],
            [null(), null(), null()],
            vec![],
        )
        .unwrap();
        let instance = Arc::new(Instance::new(
            "task web".into(),
            crate::watch::watch_child(child).unwrap(),
            write,
        ));
        let reaper = Arc::clone(&instance);
        tokio::spawn(async move { reaper.reap().await });
        (instance, read)
    }

    #[tokio::test]
    async fn every_waiter_hears_the_exit_code() {
        let (instance, _start) = instance("exit 7");
        let (first, second) = tokio::join!(instance.wait(), instance.wait());
        assert_eq!((first.status, second.status), (7, 7));
        assert_eq!(instance.wait().await, first);
    }

    #[tokio::test]
    async fn a_signal_before_start_ends_it() {
        let (instance, _start) = instance("sleep 100");
        instance.kill(TERM).unwrap();
        assert_eq!(instance.wait().await.status, 143);
        assert!(matches!(instance.kill(TERM), Err(AgentError::Ended(_))));
        assert!(matches!(instance.start(), Err(AgentError::Phase { .. })));
    }

    #[test]
    fn signals_are_1_to_64() {
        assert_eq!(SignalNumber::new(0), None);
        assert_eq!(SignalNumber::new(15), Some(TERM));
        assert!(SignalNumber::new(64).is_some());
        assert_eq!(SignalNumber::new(65), None);
        assert_eq!(SignalNumber::new(256 + 9), None);
    }

    #[tokio::test]
    async fn it_starts_once() {
        let (instance, start) = instance("sleep 100");
        instance.start().unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&start, &mut byte).unwrap(), 1);
        assert_eq!(instance.phase(), Phase::Running);
        assert!(instance.start().is_err());
        instance.kill(KILL).unwrap();
        assert_eq!(instance.wait().await.status, 137);
    }
}

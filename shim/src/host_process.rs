//! A process of the host, held by its descriptor: no race with a reused pid, no `waitpid(-1)`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};

use crate::sys::watch::{readable_within, watch_readable};

/// A process of the host and the descriptor that pins it.
#[derive(Clone, Debug)]
pub(crate) struct HostProcess {
    pid: u32,
    pidfd: Arc<OwnedFd>,
}

/// Opens the descriptor of a child that was just spawned; without a descriptor the child is ended at once.
///
/// # Errors
/// `pidfd_open(2)`'s.
pub(crate) fn pin(child: &mut Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    pidfd.map_err(|errno| {
        let _ = child.kill();
        let _ = child.wait();
        errno.into()
    })
}

impl HostProcess {
    /// Takes over the pid and the descriptor that `clone3` returned.
    #[must_use]
    pub(crate) fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Arc::new(pidfd),
        }
    }

    /// Finds a process again by pid and start time; `None` when the process has ended.
    ///
    /// # Errors
    /// `pidfd_open(2)`'s but `ESRCH`.
    pub(crate) fn find(pid: u32, start: u64) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Read after the descriptor pins the process: now pid and descriptor belong to the same process.
        let same = start_time(pid).is_ok_and(|found| found == start);
        Ok(same.then(|| Self::new(pid, pidfd)))
    }

    /// The pid on the host.
    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends `SIGKILL`. A process that has ended already is no error.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    /// Opens the process's root directory, in its own mount namespace.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` when the process has ended.
    pub(crate) fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(format!("/proc/{}", self.pid), flags, Mode::empty())?;
        // A pid is used again only after its process was reaped. This process has not been, so the
        // directory that was opened before is the directory of this process, and stays so.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(self.pidfd.as_fd()), look)?;
        Ok(rustix::fs::openat(proc, "root", flags, Mode::empty())?)
    }

    /// Sets `/proc/PID/oom_score_adj` (`proc_pid_oom_score_adj(5)`), -1000 to 1000. The process has not been reaped.
    ///
    /// # Errors
    /// Those of writing the file.
    pub(crate) fn set_oom_score_adj(&self, score: i32) -> io::Result<()> {
        fs::write(
            format!("/proc/{}/oom_score_adj", self.pid),
            score.to_string(),
        )
    }

    /// Sends a signal. A process that has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&*self.pidfd, signal);
    }

    /// Waits, without blocking the runtime, until the process has ended, and reaps a child of the shim.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub(crate) async fn wait(&self) -> io::Result<Option<WaitIdStatus>> {
        let ready = watch_readable(self.pidfd.try_clone()?)?;
        let _ended = ready.readable().await?;
        Ok(self.reap())
    }

    /// Blocks until the process has ended, at most `limit`; `false` when it still runs.
    ///
    /// # Errors
    /// `poll(2)`'s.
    pub(crate) fn wait_blocking(&self, limit: Duration) -> io::Result<bool> {
        let ended = readable_within(&*self.pidfd, limit)?;
        if ended {
            self.reap();
        }
        Ok(ended)
    }

    fn reap(&self) -> Option<WaitIdStatus> {
        // ECHILD: the process is no child of the shim, or was reaped before.
        waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
        .ok()
        .flatten()
    }
}

/// Field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`): ticks since boot when the process started.
///
/// # Errors
/// There is no such process, or its `stat` is not in the documented form.
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    stat_field(pid, 22)
}

/// Field 4 of `/proc/PID/stat` (`proc_pid_stat(5)`): the process's parent.
///
/// # Errors
/// There is no such process, or its `stat` is not in the documented form.
pub(crate) fn parent(pid: u32) -> io::Result<u32> {
    stat_field(pid, 4)
}

/// A field behind the name, by its number in `proc_pid_stat(5)`.
fn stat_field<T: FromStr>(pid: u32, number: usize) -> io::Result<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold anything, spaces and `)` included.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(number.checked_sub(3)?))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no field {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_by_pid_and_start_time_only() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        assert!(HostProcess::find(child.id(), start + 1).unwrap().is_none());
        let process = HostProcess::find(child.id(), start).unwrap().unwrap();
        assert!(!process.wait_blocking(Duration::ZERO).unwrap());
        process.kill();
        assert!(process.wait_blocking(Duration::from_secs(10)).unwrap());
        assert!(HostProcess::find(child.id(), start).unwrap().is_none());
        assert!(child.wait().is_err(), "reaped before");
    }
}

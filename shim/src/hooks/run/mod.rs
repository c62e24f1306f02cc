//! Runs a hook, from its start to its end.
//!
//! A hook leads a process group of its own, so that what ends the shim does not end the hook, and a late
//! hook is killed with all it has started. A hook's output goes into one pipe; the last of the output is
//! quoted in the error. Processes that a hook leaves in the background are not waited for.

use std::io::{self, Seek as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::bundle::{Hook, HookState, Stage};
use crate::error::{Coded, ErrorCode, printable};
use crate::host_process::pin;
use crate::sys::watch::poll_until;

/// The limit of a hook that sets none: the kubelet gives up a Create after two minutes.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(110);
/// The longest limit, whatever `timeout` says: no client waits for a Create or a Delete as long.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// A killed hook that has not ended by then is stuck in the kernel.
const KILL_MAX: Duration = Duration::from_secs(3);
/// The last of a hook's output that is quoted, bytes.
const QUOTED_BYTES_MAX: usize = 1024;
/// The capacity of a pipe, bytes (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// The hook could not even be run.
    #[error("cannot run {field}[{index}], {}", path.display())]
    Spawn {
        /// The hook's list in `config.json`.
        field: &'static str,
        /// The hook's place in the list, from 0.
        index: usize,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The hook failed: by its exit status, by a signal, or by its time limit.
    #[error("{field}[{index}], {}, {how}{output}", path.display())]
    Failed {
        /// The hook's list in `config.json`.
        field: &'static str,
        /// The hook's place in the list, from 0.
        index: usize,
        path: PathBuf,
        /// As in "exited with status 1".
        how: String,
        /// The last of the hook's output, after a colon; or empty.
        output: String,
    },
    /// The hook's thread could not be started, or the hook not waited for.
    #[error("cannot wait for a hook")]
    Wait(#[source] io::Error),
    /// The task was deleted while the hook ran.
    #[error("the task was deleted while a hook ran")]
    Cancelled,
}

impl Coded for HookError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Spawn { .. } | Self::Failed { .. } | Self::Cancelled => {
                ErrorCode::FailedPrecondition
            }
            Self::Wait(_) => ErrorCode::Internal,
        }
    }
}

/// A hook of a task, to be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// The list that the hook is in.
    pub stage: Stage,
    /// The hook's place in the list, from 0.
    pub index: usize,
    pub hook: &'a Hook,
}

/// A hook that runs. Dropping a hook before its end kills the hook.
#[derive(Debug)]
pub(super) struct Running<'a> {
    call: Call<'a>,
    child: Child,
    pidfd: OwnedFd,
    output: Option<OwnedFd>,
    said: Vec<u8>,
    limit: Duration,
    ended: bool,
}

impl<'a> Running<'a> {
    /// Starts the hook, with the task's state on standard input.
    ///
    /// # Errors
    /// [`HookError::Spawn`].
    pub(super) fn spawn(call: Call<'a>, state: &HookState) -> Result<Self, HookError> {
        let hook = call.hook;
        spawn(hook, state)
            .map(|(child, pidfd, output)| Self {
                call,
                child,
                pidfd,
                output: Some(output),
                said: Vec::new(),
                limit: limit(hook.timeout),
                ended: false,
            })
            .map_err(|source| HookError::Spawn {
                field: call.stage.field(),
                index: call.index,
                path: hook.path.clone(),
                source,
            })
    }

    /// The hook's pid on the host.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the hook's end, at most its time limit. Once `cancel` is readable or hung up, the hook is
    /// killed.
    ///
    /// # Errors
    /// [`HookError`]; the hook has ended or was killed in any case.
    pub(super) fn finish(mut self, cancel: Option<BorrowedFd<'_>>) -> Result<(), HookError> {
        let deadline = Instant::now() + self.limit;
        loop {
            if Instant::now() >= deadline {
                self.kill();
                let limit = self.limit.as_secs();
                return Err(self.failed(format!("did not end within {limit} s and was killed")));
            }
            let ready = self
                .wait_a_turn(deadline, cancel)
                .map_err(HookError::Wait)?;
            if ready.cancelled {
                return Err(HookError::Cancelled);
            }
            if ready.ended {
                return self.conclude();
            }
        }
    }

    fn conclude(mut self) -> Result<(), HookError> {
        // The descriptor has reported the hook's end, so the wait does not block.
        let status = self.child.wait().map_err(HookError::Wait)?;
        self.ended = true;
        // As much as the hook can have left in the pipe: processes that it started may live on and go on
        // printing.
        for _ in 0..PIPE_BYTES / QUOTED_BYTES_MAX {
            if !self.read_output() {
                break;
            }
        }
        if status.success() {
            return Ok(());
        }
        Err(self.failed(describe(status)))
    }

    fn failed(&self, how: String) -> HookError {
        let said = printable(String::from_utf8_lossy(&self.said).trim());
        HookError::Failed {
            field: self.call.stage.field(),
            index: self.call.index,
            path: self.call.hook.path.clone(),
            how,
            output: if said.is_empty() {
                said
            } else {
                format!(": {said}")
            },
        }
    }

    fn wait_a_turn(
        &mut self,
        deadline: Instant,
        cancel: Option<BorrowedFd<'_>>,
    ) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        let output = self.output.as_ref().map(|output| {
            fds.push(PollFd::new(output, PollFlags::IN));
            fds.len() - 1
        });
        let cancel = cancel.as_ref().map(|cancel| {
            fds.push(PollFd::new(cancel, PollFlags::IN));
            fds.len() - 1
        });
        poll_until(&mut fds, deadline)?;
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        let ready = Ready {
            ended: is_ready(Some(0)),
            cancelled: is_ready(cancel),
        };
        if is_ready(output) {
            self.read_output();
        }
        Ok(ready)
    }

    /// Reads once, without waiting; whether there may be more.
    fn read_output(&mut self) -> bool {
        let mut buffer = [0; QUOTED_BYTES_MAX];
        let Some(output) = &self.output else {
            return false;
        };
        match rustix::io::read(output, &mut buffer) {
            Ok(bytes) if bytes > 0 => {
                self.said.extend_from_slice(&buffer[..bytes]);
                let surplus = self.said.len().saturating_sub(QUOTED_BYTES_MAX);
                self.said.drain(..surplus);
                true
            }
            Err(rustix::io::Errno::AGAIN) => false,
            Ok(_) | Err(_) => {
                self.output = None;
                false
            }
        }
    }

    fn kill(&mut self) {
        if let Ok(Some(group)) = i32::try_from(self.child.id()).map(Pid::from_raw) {
            // The hook is not reaped yet, so the group's number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if poll_until(&mut fds, Instant::now() + KILL_MAX).is_ok_and(|ended| ended) {
            let _ = self.child.wait();
        }
        self.ended = true;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
        }
    }
}

/// The time limit of a hook whose `timeout` is so many seconds.
fn limit(timeout_s: Option<u64>) -> Duration {
    timeout_s
        .map_or(TIMEOUT_DEFAULT, Duration::from_secs)
        .min(TIMEOUT_MAX)
}

struct Ready {
    ended: bool,
    cancelled: bool,
}

fn spawn(hook: &Hook, state: &HookState) -> io::Result<(Child, OwnedFd, OwnedFd)> {
    let mut stdin = std::fs::File::from(memfd_create(c"hook-state", MemfdFlags::CLOEXEC)?);
    stdin.write_all(&serde_json::to_vec(state)?)?;
    stdin.rewind()?;
    let (output, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // Non-blocking at the shim's end only: the hook's writes wait rather than fail.
    fcntl_setfl(&output, OFlags::NONBLOCK)?;
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    let env = hook.env.iter().filter_map(|entry| entry.split_once('='));
    command
        .env_clear()
        .envs(env)
        .stdin(stdin)
        .stdout(Stdio::from(writer.try_clone()?))
        .stderr(Stdio::from(writer))
        .process_group(0);
    let mut child = command.spawn()?;
    let pidfd = pin(&mut child)?;
    Ok((child, pidfd, output))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests;

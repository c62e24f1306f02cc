//! `binary://`: a program of the operator's that reads the output, as containerd's
//! `runtime/v2/logging` has it.
//!
//! ```text
//! pump ─► pipe ─► fd 3, standard output ┐
//! pump ─► pipe ─► fd 4, standard error  ├─ logger     CONTAINER_ID, CONTAINER_NAMESPACE, nothing else
//!  we  ◄─ pipe ◄─ fd 5: closed or written when it is ready ┘
//! ```
//!
//! A logger ends by itself when both pipes are at their end of file; otherwise SIGTERM ends it, and then
//! SIGKILL.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::fifo::OutputFifo;
use super::uri::LoggerCommand;
use super::{StdioError, StdioOwner};
use crate::host_process::{HostProcess, pin};
use crate::sys::inherit::pass_descriptors;

/// How long a logger may take from its start until it is ready to read.
const READY_MAX: Duration = Duration::from_secs(10);
/// The time from SIGTERM, for a logger that does not end at the end of its input, to SIGKILL.
const TERM_MAX: Duration = Duration::from_secs(2);
/// A killed process that has not ended by then is stuck in the kernel.
const KILL_MAX: Duration = Duration::from_secs(1);

/// A logger that runs. Dropping a logger kills its process, which the runtime reaps.
#[derive(Debug)]
pub(super) struct Logger {
    program: PathBuf,
    process: Option<HostProcess>,
}

/// A logger and the shim's ends of its pipes.
pub(super) struct Started {
    pub logger: Logger,
    pub stdout: OutputFifo,
    pub stderr: OutputFifo,
}

impl Logger {
    /// Starts the program and waits until it is ready.
    ///
    /// # Errors
    /// [`StdioError`], naming the program; then the logger does not run.
    pub(super) async fn start(
        command: &LoggerCommand,
        owner: &StdioOwner<'_>,
    ) -> Result<Started, StdioError> {
        let failed = |source| StdioError::Logger {
            program: command.program.clone(),
            source,
        };
        let (started, ready) = spawn(command, owner).map_err(failed)?;
        wait_ready(ready, command.says_ready)
            .await
            .map_err(failed)?;
        Ok(started)
    }

    /// Waits, once the logger's pipes are closed, for the logger's end, at most `within` and a little.
    pub(super) async fn finish(&mut self, within: Duration) {
        let Some(process) = self.process.take() else {
            return;
        };
        if timeout(within, process.wait()).await.is_ok() {
            return;
        }
        let program = self.program.display();
        tracing::warn!(%program, "the logger does not end with its input; ending it");
        process.signal(Signal::TERM);
        if timeout(TERM_MAX, process.wait()).await.is_err() {
            end(process).await;
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        process.kill();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(end(process))),
            // The shim ends, and its children's reaper with it.
            Err(_) => drop(process),
        }
    }
}

/// Kills the process and reaps it.
async fn end(process: HostProcess) {
    process.kill();
    // The kill takes milliseconds. A failure means that there is nothing to reap.
    let _ = timeout(KILL_MAX, process.wait()).await;
}

fn spawn(command: &LoggerCommand, owner: &StdioOwner<'_>) -> io::Result<(Started, pipe::Receiver)> {
    let (stdout_end, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr_end, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ready, ready_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let ready = pipe::Receiver::from_owned_fd(ready)?;
    let stdout = OutputFifo::of_pipe("stdout", stdout)?;
    let stderr = OutputFifo::of_pipe("stderr", stderr)?;
    let process = execute(command, owner, [stdout_end, stderr_end, ready_end])?;
    let logger = Logger {
        program: command.program.clone(),
        process: Some(process),
    };
    let started = Started {
        logger,
        stdout,
        stderr,
    };
    Ok((started, ready))
}

fn execute(
    logger: &LoggerCommand,
    owner: &StdioOwner<'_>,
    ends: [OwnedFd; 3],
) -> io::Result<HostProcess> {
    let mut command = Command::new(&logger.program);
    command
        .args(&logger.args)
        .env_clear()
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // The shim's copies of the ends go with the command, so that an end of file can be seen.
    let _held = pass_descriptors(&mut command, ends)?;
    let mut child = command.spawn()?;
    let pidfd = pin(&mut child)?;
    Ok(HostProcess::new(child.id(), pidfd))
}

async fn wait_ready(mut ready: pipe::Receiver, says_ready: bool) -> io::Result<()> {
    let mut word = [0; 1];
    match timeout(READY_MAX, ready.read(&mut word)).await {
        Err(_) => {
            let sentence = format!("it was not ready within {} s", READY_MAX.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, sentence))
        }
        Ok(Ok(0)) if says_ready => Err(io::Error::other("it ended before it was ready")),
        Ok(read) => read.map(drop),
    }
}

//! A VMM process and the shim's end of its control socket.
//!
//! ```text
//! launch::launch ──► Vm ──orders──► control socket ──► VMM
//!                     ▲                   │
//!                     └──── driver ◄──────┘ answers, AgentReady, GuestEnded
//! ```
//!
//! [`launch`] spawns the process and leads it through the handshake; [`driver`] is the one task that reads
//! the socket; [`answers`] hands each answer to the waiter of its order; [`host_process`](crate::host_process) waits for
//! and kills processes by descriptor; [`log`] carries the VMM's standard error to the shim's log. Dropping the last
//! [`Vm`] ends the VMM.

mod answers;
pub(crate) mod credentials;
mod driver;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub(crate) mod label;
pub(crate) mod launch;
mod log;
pub(crate) mod network;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use wasmvm_protocol::control::{self, ControlError, ToVmm};
use wasmvm_protocol::inspect::Node;

use crate::error::{Coded, ErrorCode};
use crate::host_process::HostProcess;
use crate::log::spawn_in_span;
use crate::vm::answers::{Answers, Awaited};
use crate::vm::driver::{Driver, State};

/// How long the VMM may take to answer an order, from its own knowledge or after the guest's handshake.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a broken connection waits for the VMM's report of the end.
const REASON_MAX: Duration = Duration::from_secs(1);

/// A VMM process and the orders to it. Cheap to clone; all clones are the same VM.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    process: HostProcess,
    control: OwnedFd,
    cpu: String,
    next_id: AtomicU32,
    state: watch::Receiver<State>,
    answers: Answers,
    killed: watch::Sender<bool>,
}

/// The end of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmEnd {
    /// The reason, as a sentence for errors and the log.
    pub reason: String,
    /// The last of the guest's console, where there is any.
    pub console_tail: String,
}

/// Why a VM does not carry out an order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// The VMM has ended, or is about to.
    #[error("the microVM ended: {}{}", .0.reason, crate::error::console(&.0.console_tail))]
    Ended(VmEnd),
    /// The VMM did not answer in time.
    #[error("the microVM did not {what} within {limit:?}")]
    Timeout {
        /// The step that did not happen, to stand behind "did not".
        what: &'static str,
        /// How long the VMM was given.
        limit: Duration,
    },
    /// The control socket is full.
    #[error("the VMM does not take orders")]
    Deaf,
    /// The guest does not listen on the port, or hung up.
    #[error("the guest refused a connection to vsock port {port}: {reason}")]
    Refused {
        /// The guest's vsock port.
        port: u32,
        /// The reason, in the VMM's words.
        reason: String,
    },
    /// The VMM's answer is not for the order, or refuses where no refusal is foreseen.
    #[error("{0}")]
    Answer(String),
    /// The control socket failed.
    #[error("cannot talk to the VMM")]
    Control(#[source] ControlError),
    /// A descriptor could not be made.
    #[error("cannot {action}")]
    Descriptor {
        /// The step, to stand behind "cannot".
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Coded for VmError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Timeout { .. } => ErrorCode::DeadlineExceeded,
            Self::Ended(_) | Self::Deaf | Self::Refused { .. } => ErrorCode::Unavailable,
            Self::Answer(_) | Self::Control(_) | Self::Descriptor { .. } => ErrorCode::Internal,
        }
    }
}

impl Vm {
    /// Takes over a VMM whose handshake is done. Called inside the runtime.
    fn new(process: HostProcess, control: OwnedFd, cpu: String) -> Result<Self, VmError> {
        // A VMM that does not read must not stop the shim: with a full socket an order fails.
        fcntl_setfl(&control, OFlags::NONBLOCK).map_err(|errno| VmError::Descriptor {
            action: "make the control socket non-blocking",
            source: errno.into(),
        })?;
        let reader = control.try_clone().map_err(|source| VmError::Descriptor {
            action: "copy the control descriptor",
            source,
        })?;
        let killed = watch::Sender::new(false);
        let (driver, state, answers) = Driver::new(reader, process.clone(), killed.subscribe())?;
        // The driver ends with the process, also after the last `Vm` was dropped: the driver reaps the
        // process.
        spawn_in_span(driver.run());
        let next_id = AtomicU32::new(1);
        Ok(Self {
            inner: Arc::new(Inner {
                process,
                control,
                cpu,
                next_id,
                state,
                answers,
                killed,
            }),
        })
    }

    /// The VMM's pid on the host.
    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.inner.process.pid()
    }

    /// The features of the guest's CPU in the VMM's words; of equal text for all CPUs that run the same artifacts.
    #[must_use]
    pub(crate) fn cpu(&self) -> &str {
        &self.inner.cpu
    }

    /// The VMM as a process of the host.
    #[must_use]
    pub(crate) fn process(&self) -> &HostProcess {
        &self.inner.process
    }

    /// Waits until the guest listens; returns the boot time on the host's monotonic clock.
    ///
    /// # Errors
    /// [`VmError::Ended`] with the reason, [`VmError::Timeout`].
    pub(crate) async fn ready(&self, limit: Duration) -> Result<Duration, VmError> {
        let mut state = self.inner.state.clone();
        let settled = state.wait_for(|state| state.ready.is_some() || state.end.is_some());
        let settled = timeout(limit, settled)
            .await
            .map_err(|_| VmError::Timeout {
                what: "boot",
                limit,
            })?;
        // The driver never drops its sender before it has set the end.
        let state = settled.map_err(|_| VmError::Ended(VmEnd::unknown()))?;
        match (&state.ready, &state.end) {
            (Some(boot), _) => Ok(*boot),
            (None, Some(end)) => Err(VmError::Ended(end.clone())),
            (None, None) => Err(VmError::Ended(VmEnd::unknown())),
        }
    }

    /// Waits until the VMM's process has ended and is reaped, or was killed and does not end. Any number of
    /// callers may wait.
    pub(crate) async fn ended(&self) -> VmEnd {
        let mut state = self.inner.state.clone();
        match state.wait_for(|state| state.end.is_some()).await {
            Ok(state) => state.end.clone().unwrap_or_else(VmEnd::unknown),
            Err(_) => VmEnd::unknown(),
        }
    }

    /// Kills the VMM; [`Vm::ended`] reports the end.
    pub(crate) fn kill(&self) {
        self.inner.kill();
    }

    /// Maps `file` (opened read-only) as slot `index`, in place of the file that lies there.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn map_slot(&self, index: u32, file: BorrowedFd<'_>) -> Result<(), VmError> {
        let id = self.next_id();
        self.done(id, &ToVmm::MapSlot { id, index }, &[file]).await
    }

    /// Stops the guest: afterwards no vCPU runs and no device works.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn pause(&self) -> Result<(), VmError> {
        let id = self.next_id();
        self.done(id, &ToVmm::Pause { id }, &[]).await
    }

    /// Resumes a stopped guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn resume(&self) -> Result<(), VmError> {
        let id = self.next_id();
        self.done(id, &ToVmm::Resume { id }, &[]).await
    }

    /// The state of the machine and its devices in the VMM's words, which are the guest's once the VMM is taken over.
    /// The VMM has `limit` to answer.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn inspect(&self, limit: Duration) -> Result<Node, VmError> {
        let id = self.next_id();
        let inspected = self.inner.answers.inspected(id);
        self.send(&ToVmm::Inspect { id }, &[])?;
        let state = self.answer(inspected, limit).await?;
        state.map_err(VmError::Answer)
    }

    /// Gives an order whose answer says no more than that the order is carried out.
    async fn done(&self, id: u32, order: &ToVmm, fds: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        let done = self.inner.answers.done(id);
        self.send(order, fds)?;
        let done = self.answer(done, ANSWER_MAX).await?;
        done.map_err(VmError::Answer)
    }

    /// Opens a byte stream to a port of the guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        let failed = |source| VmError::Descriptor {
            action: "make a stream to the guest",
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let theirs = theirs.into_std().map_err(failed)?;
        let id = self.next_id();
        let connected = self.inner.answers.connected(id);
        self.send(&ToVmm::Connect { id, port }, &[theirs.as_fd()])?;
        let connected = self.answer(connected, ANSWER_MAX).await?;
        let refused = |reason| VmError::Refused { port, reason };
        connected.map(|()| ours).map_err(refused)
    }

    /// Has the VMM append what a port of the guest sends to `file`; returns the number of bytes.
    ///
    /// # Errors
    /// [`VmError`]; among them when the guest sends more than `bytes_max`, or not all within `limit`.
    pub(crate) async fn sink(
        &self,
        port: u32,
        file: &File,
        bytes_max: u64,
        limit: Duration,
    ) -> Result<u64, VmError> {
        let id = self.next_id();
        let order = ToVmm::Sink {
            id,
            port,
            bytes_max,
        };
        let written = self.inner.answers.written(id);
        self.send(&order, &[file.as_fd()])?;
        let written = self.answer(written, limit).await?;
        written.map_err(|reason| VmError::Refused { port, reason })
    }

    /// How many orders wait for an answer.
    #[cfg(test)]
    fn orders_pending(&self) -> usize {
        self.inner.answers.pending()
    }

    fn next_id(&self) -> u32 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, order: &ToVmm, fds: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        control::send(&self.inner.control, order, fds).map_err(|err| self.lost(err))
    }

    /// The error of a failed send: a VMM that has ended is not a control error.
    fn lost(&self, error: ControlError) -> VmError {
        if error.is_would_block() {
            return VmError::Deaf;
        }
        match &self.inner.state.borrow().end {
            Some(end) => VmError::Ended(end.clone()),
            None => VmError::Control(error),
        }
    }

    async fn answer<T>(&self, awaited: Awaited<T>, limit: Duration) -> Result<T, VmError> {
        tokio::select! {
            answered = timeout(limit, awaited.answer()) => match answered {
                Ok(Some(answer)) => Ok(answer),
                // The driver, which held the other end, has ended with the VM.
                Ok(None) => Err(VmError::Ended(self.ended().await)),
                Err(_) => Err(VmError::Timeout {
                    what: "answer",
                    limit,
                }),
            },
            end = self.ended() => Err(VmError::Ended(end)),
        }
    }
}

/// The end that explains a broken connection to the guest: the connection breaks a moment before the VM's
/// end is known. `None` when the VM has not ended.
pub(crate) async fn end_behind_silence(vm_ended: impl Future<Output = VmEnd>) -> Option<VmEnd> {
    timeout(REASON_MAX, vm_ended).await.ok()
}

impl VmEnd {
    fn unknown() -> Self {
        Self {
            reason: "the VMM ended without a word".into(),
            console_tail: String::new(),
        }
    }
}

impl Inner {
    fn kill(&self) {
        self.process.kill();
        self.killed.send_replace(true);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_error_has_its_code() {
        use ErrorCode::{DeadlineExceeded, Internal, Unavailable};
        let late = VmError::Timeout {
            what: "boot",
            limit: REASON_MAX,
        };
        let refused = VmError::Refused {
            port: 1024,
            reason: "no".into(),
        };
        let descriptor = VmError::Descriptor {
            action: "copy the control descriptor",
            source: io::ErrorKind::Other.into(),
        };
        expect_codes([
            (late, DeadlineExceeded),
            (VmError::Ended(VmEnd::unknown()), Unavailable),
            (VmError::Deaf, Unavailable),
            (refused, Unavailable),
            (VmError::Answer("no".into()), Internal),
            (VmError::Control(ControlError::Truncated), Internal),
            (descriptor, Internal),
        ]);
    }
}

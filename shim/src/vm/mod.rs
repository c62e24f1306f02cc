//! One VMM process and the shim's end of its control socket.
//!
//! ```text
//! launch::launch ──► Vm ──orders──► control socket ──► VMM
//!                     ▲                   │
//!                     └──── driver ◄──────┘ answers, AgentReady, GuestEnded
//! ```
//!
//! [`launch`] spawns the process and leads it through the handshake; [`driver`] is the one task that
//! reads the socket; [`process`] waits for and kills processes by descriptor; [`log`] carries the
//! VMM's standard error to the shim's log. Dropping the last [`Vm`] ends the VMM.

mod driver;
pub mod launch;
mod log;
pub mod process;

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
use wasmvm_protocol::control::{self, ControlError, FromVmm, ToVmm};

use crate::error::ErrorCode;
use crate::vm::driver::{Driver, State};
use crate::vm::process::Process;

/// The VMM answers an order from its own knowledge, or after the guest's handshake.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A VMM process and what it is told. Cheap to clone; all clones are the same VM.
#[derive(Clone, Debug)]
pub struct Vm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    process: Process,
    control: OwnedFd,
    next_id: AtomicU32,
    state: watch::Receiver<State>,
    answers: driver::Answers,
    killed: watch::Sender<bool>,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmEnd {
    /// One sentence.
    pub reason: String,
    /// The last of the guest's console, where there is any.
    pub console_tail: String,
}

/// Why a VM does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VMM is gone, or going.
    #[error("the microVM ended: {}{}", .0.reason, crate::error::console(&.0.console_tail))]
    Ended(VmEnd),
    /// No answer in time.
    #[error("the microVM did not {what} within {limit:?}")]
    Timeout {
        /// The order.
        what: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The control socket is full.
    #[error("the VMM does not take orders")]
    Deaf,
    /// The guest does not listen there, or hung up.
    #[error("the guest refused a connection to vsock port {port}: {reason}")]
    Refused {
        /// The guest's port.
        port: u32,
        /// The VMM's sentence.
        reason: String,
    },
    /// Not an answer to the order.
    #[error("the VMM answered {0}")]
    Answer(String),
    /// The control socket.
    #[error("cannot talk to the VMM")]
    Control(#[source] ControlError),
    /// A descriptor could not be made.
    #[error("cannot {action}")]
    Descriptor {
        /// What was attempted.
        action: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

impl VmError {
    /// containerd's code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Timeout { .. } => ErrorCode::DeadlineExceeded,
            Self::Ended(_) | Self::Deaf | Self::Refused { .. } => ErrorCode::Unavailable,
            Self::Answer(_) | Self::Control(_) | Self::Descriptor { .. } => ErrorCode::Internal,
        }
    }
}

impl Vm {
    /// Takes over a VMM whose handshake is done. Called inside the runtime.
    fn new(process: Process, control: OwnedFd) -> Result<Self, VmError> {
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
        // Ends with the process, also when nobody holds the VM any more: it is who reaps it.
        tokio::spawn(driver.run());
        let next_id = AtomicU32::new(1);
        Ok(Self {
            inner: Arc::new(Inner {
                process,
                control,
                next_id,
                state,
                answers,
                killed,
            }),
        })
    }

    /// The VMM's pid on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.process.pid()
    }

    /// The VMM.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.inner.process
    }

    /// Waits until the guest listens; returns the boot time on the host's monotonic clock.
    ///
    /// # Errors
    /// [`VmError::Ended`] with the reason, [`VmError::Timeout`].
    pub async fn ready(&self, limit: Duration) -> Result<Duration, VmError> {
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

    /// Waits until the VMM process is gone and reaped, or was killed and does not go. Any number of
    /// callers.
    pub async fn ended(&self) -> VmEnd {
        let mut state = self.inner.state.clone();
        match state.wait_for(|state| state.end.is_some()).await {
            Ok(state) => state.end.clone().unwrap_or_else(VmEnd::unknown),
            Err(_) => VmEnd::unknown(),
        }
    }

    /// Kills the VMM. Its end is reported by [`Vm::ended`].
    pub fn kill(&self) {
        self.inner.kill();
    }

    /// Maps `file` (opened read-only) as slot `index`, instead of what lies there.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn map_slot(&self, index: u32, file: BorrowedFd<'_>) -> Result<(), VmError> {
        let id = self.next_id();
        let order = ToVmm::MapSlot { id, index };
        self.done(id, &order, &[file]).await
    }

    /// Stops the guest: afterwards no vCPU runs and no device works.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn pause(&self) -> Result<(), VmError> {
        let id = self.next_id();
        self.done(id, &ToVmm::Pause { id }, &[]).await
    }

    /// Lets a stopped guest go on.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn resume(&self) -> Result<(), VmError> {
        let id = self.next_id();
        self.done(id, &ToVmm::Resume { id }, &[]).await
    }

    /// Gives an order that is answered by [`FromVmm::Done`].
    async fn done(&self, id: u32, order: &ToVmm, fds: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        match self.ask(id, order, fds, ANSWER_MAX).await? {
            FromVmm::Done { .. } => Ok(()),
            other => Err(VmError::Answer(format!("{other:?}"))),
        }
    }

    /// Opens a byte stream to a port of the guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        let failed = |source| VmError::Descriptor {
            action: "make a stream to the guest",
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let theirs = theirs.into_std().map_err(failed)?;
        let id = self.next_id();
        let order = ToVmm::Connect { id, port };
        match self.ask(id, &order, &[theirs.as_fd()], ANSWER_MAX).await? {
            FromVmm::Connected { .. } => Ok(ours),
            FromVmm::Refused { reason, .. } => Err(VmError::Refused { port, reason }),
            other => Err(VmError::Refused {
                port,
                reason: format!("the VMM answered {other:?}"),
            }),
        }
    }

    /// Has the VMM append what a port of the guest sends to `file`; returns the number of bytes.
    ///
    /// # Errors
    /// [`VmError`]; among them when the guest sends more than `bytes_max`.
    pub async fn sink(
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
        let mut answer = self.ask(id, &order, &[file.as_fd()], limit).await?;
        if matches!(answer, FromVmm::Connected { .. }) {
            answer = self.answer(id, limit).await?;
        }
        match answer {
            FromVmm::SinkDone { bytes, .. } => Ok(bytes),
            FromVmm::Refused { reason, .. } | FromVmm::SinkFailed { reason, .. } => {
                Err(VmError::Refused { port, reason })
            }
            other => Err(VmError::Refused {
                port,
                reason: format!("the VMM answered {other:?}"),
            }),
        }
    }

    fn next_id(&self) -> u32 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, order: &ToVmm, fds: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        control::send(&self.inner.control, order, fds).map_err(|err| self.lost(err))
    }

    /// What a failed send means: a VMM that has ended is not a control error.
    fn lost(&self, error: ControlError) -> VmError {
        if error.is_would_block() {
            return VmError::Deaf;
        }
        match &self.inner.state.borrow().end {
            Some(end) => VmError::Ended(end.clone()),
            None => VmError::Control(error),
        }
    }

    async fn ask(
        &self,
        id: u32,
        order: &ToVmm,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<FromVmm, VmError> {
        self.inner.answers.expect(id);
        if let Err(err) = self.send(order, fds) {
            self.inner.answers.forget(id);
            return Err(err);
        }
        self.answer(id, limit).await
    }

    async fn answer(&self, id: u32, limit: Duration) -> Result<FromVmm, VmError> {
        let answered = tokio::select! {
            answered = timeout(limit, self.inner.answers.next(id)) => answered,
            end = self.ended() => return Err(VmError::Ended(end)),
        };
        answered.map_err(|_| {
            self.inner.answers.forget(id);
            VmError::Timeout {
                what: "answer",
                limit,
            }
        })
    }
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

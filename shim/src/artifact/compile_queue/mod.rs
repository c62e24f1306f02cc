//! The queue for compiler VMs, among all shims of the host: a bounded number of compilers at once, one
//! for each program, and in an order that is fair between tenants.
//!
//! A program is wanted by a *tenant*: the pod's namespace where there is one, else containerd's. Tenants
//! take turns, whatever number of programs a tenant wants, so that a tenant waits for the programs that
//! run and for one program of each tenant before it, never for another tenant's whole queue. No tenant fails because
//! others compile; a tenant that has [`WAITING_MAX`] programs waiting already is refused.
//!
//! ```text
//! want ─► compiled right now? ──yes──► follow: wait for its end, look in the store, else want again
//!            └no─► ticket ─► wait ─► a compiler is free for the ticket ─► turn
//! ```
//!
//! A program that another *tenant* compiles is followed once only: a tenant that starts and gives up again and again
//! must not keep others from the program. The state is files and their locks ([`fair_queue`]), which the kernel releases
//! with the process: a killed shim blocks no other.

mod fair_queue;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::ArtifactKey;
use crate::error::{Coded, ErrorCode};
use crate::off_thread::off_thread;
use fair_queue::{Queue, Seen, Ticket};

pub(crate) use fair_queue::Turn;

/// Most programs of one tenant that wait at once.
const WAITING_MAX: usize = 64;
/// Time between two looks at the queue, for each ticket ahead and once more.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// Longest time between two looks at the queue.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Why there is no turn at compiling.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompileQueueError {
    /// The tenant has [`WAITING_MAX`] programs waiting.
    #[error(
        "cannot compile: {WAITING_MAX} other programs of tenant {tenant} wait already; try again later, \
         or raise `compilers_max`, how many compile at once"
    )]
    Full {
        /// Name of the tenant, as in [`CompileQueue::next`].
        tenant: String,
    },
    /// A file of the queue cannot be used.
    #[error("cannot use {}, the queue of those who compile", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The thread that looks at the queue failed.
    #[error("cannot look whose turn it is to compile")]
    Look(#[source] io::Error),
}

impl Coded for CompileQueueError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Full { .. } => ErrorCode::ResourceExhausted,
            Self::File { .. } | Self::Look(_) => ErrorCode::Internal,
        }
    }
}

/// Result of waiting for a turn.
#[derive(Debug)]
pub(crate) enum Next {
    /// Compile now; look in the store before.
    Turn(Turn),
    /// Another task has compiled the artifact, or has failed to.
    Followed {
        /// Whether the task is another tenant's.
        stranger: bool,
    },
}

/// A tenant and the artifact that it wants.
#[derive(Clone, Debug)]
struct Want {
    tenant: String,
    key: ArtifactKey,
    /// Whether to wait for another tenant's compile of the artifact.
    follows_strangers: bool,
}

/// The queue for the compiler VMs of a host.
#[derive(Clone, Debug)]
pub(crate) struct CompileQueue {
    queue: Queue,
}

impl CompileQueue {
    /// The queue whose files lie in `directory`, which is made when needed; at most `compilers_max` compile at once.
    #[must_use]
    pub(crate) fn new(directory: PathBuf, compilers_max: u64) -> Self {
        let queue = Queue::new(directory, compilers_max);
        Self { queue }
    }

    /// Waits until `tenant` may compile the artifact, or until another task's compile of it has ended. As long as a
    /// [`Turn`] lives, its compiler is taken.
    ///
    /// # Errors
    /// [`CompileQueueError`].
    pub(crate) async fn next(
        &self,
        tenant: &str,
        key: &ArtifactKey,
        follows_strangers: bool,
    ) -> Result<Next, CompileQueueError> {
        let want = Want {
            tenant: tenant.to_owned(),
            key: key.clone(),
            follows_strangers,
        };
        let mut ticket = None;
        let mut waits = false;
        loop {
            let look = match self.look(&want, ticket.take()).await? {
                Seen::Turn(turn) => return Ok(Next::Turn(turn)),
                Seen::Compiled { stranger } => return self.follow(want, stranger).await,
                Seen::Waits { own, ahead } => {
                    ticket = Some(own);
                    LOOK_MIN * u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1)
                }
            };
            if !waits {
                tracing::debug!(tenant, key = key.as_str(), "waits for its turn to compile");
                waits = true;
            }
            tokio::time::sleep(look.min(LOOK_MAX)).await;
        }
    }

    async fn look(&self, want: &Want, ticket: Option<Ticket>) -> Result<Seen, CompileQueueError> {
        let (queue, want) = (self.queue.clone(), want.clone());
        off_thread(move || queue.look(&want, ticket))
            .await
            .map_err(CompileQueueError::Look)?
    }

    /// Waits for the end of another task's compile of the artifact.
    async fn follow(&self, want: Want, mut stranger: bool) -> Result<Next, CompileQueueError> {
        let mut look = LOOK_MIN;
        loop {
            tokio::time::sleep(look).await;
            look = (look * 2).min(LOOK_MAX);
            let (queue, want) = (self.queue.clone(), want.clone());
            let compiled = off_thread(move || queue.compiled_by(&want)).await;
            match compiled.map_err(CompileQueueError::Look)?? {
                Some(now) => stranger = now,
                None => return Ok(Next::Followed { stranger }),
            }
        }
    }
}

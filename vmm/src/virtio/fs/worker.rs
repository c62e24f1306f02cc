//! The device's thread: waits for kicks, takes requests from the queues, returns the answers.

use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::client::ClientError;
use super::request::RequestServer;
use super::view::{MemoryView, ViewError};
use crate::descriptors;
use crate::gate::Gate;
use crate::seccomp::SeccompError;
use crate::virtio::{Activation, ActiveQueue, Interrupt};

/// The state of the thread.
pub(super) struct Worker {
    server: RequestServer,
    memory: MemoryView,
    queues: Vec<ActiveQueue>,
    interrupt: Interrupt,
}

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// The driver broke the rules of a ring; no content of the ring can be trusted any more.
    #[error("the guest's queue {queue} is not a valid ring")]
    Ring {
        /// Index of the queue.
        queue: usize,
        /// Error of the queue's library.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver announces a request that does not exist.
    #[error("the guest's queue {0} announces requests that do not exist")]
    Empty(usize),
    /// Guest memory is not what the server's library takes.
    #[error("the file system device cannot start")]
    View(#[from] ViewError),
    /// The file server carries out no more requests.
    #[error(transparent)]
    FileServer(#[from] ClientError),
    /// The thread got no filter of system calls, without which it may not work.
    #[error("the thread of the file system device cannot be confined")]
    Confine(#[from] SeccompError),
    /// A system call failed.
    #[error("cannot {call}")]
    Os {
        /// Purpose of the call.
        call: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Worker {
    pub(super) fn new(server: RequestServer, activation: Activation) -> Result<Self, WorkerError> {
        let event_idx = activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = activation.queues;
        for active in &mut queues {
            active.queue.set_event_idx(event_idx);
        }
        Ok(Self {
            server,
            memory: MemoryView::new(activation.memory)?,
            queues,
            interrupt: activation.interrupt,
        })
    }

    /// Serves until the guest breaks its queues, or a system call fails, and stands still while `gate`
    /// is closed, for which `wake` wakes the thread.
    pub(super) fn run(mut self, gate: &Gate, wake: &Arc<EventFd>) -> WorkerError {
        let kick = Arc::clone(wake);
        // Full means that the worker is woken already.
        let pass = gate.enter(move || drop(kick.write(1)));
        loop {
            if pass.is_closed() {
                pass.park();
            }
            if let Err(error) = self.wait_and_serve(wake) {
                return error;
            }
        }
    }

    fn wait_and_serve(&mut self, wake: &EventFd) -> Result<(), WorkerError> {
        let wait_error = os("wait for requests");
        let mut kicks = Vec::with_capacity(self.queues.len().saturating_add(2));
        for event in self.queues.iter().map(|active| &active.kick).chain([wake]) {
            let kick = descriptors::of_event(event);
            kicks.push(PollFd::from_borrowed_fd(kick, PollFlags::IN));
        }
        let server = self.server.client().socket();
        kicks.push(PollFd::from_borrowed_fd(server, PollFlags::IN));
        match poll(&mut kicks, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(wait_error(errno.into())),
        }
        let server_ended = kicks.pop().is_some_and(|end| !end.revents().is_empty());
        let kicked: Vec<bool> = kicks
            .iter()
            .map(|kick| !kick.revents().is_empty())
            .collect();
        if server_ended {
            return Err(ClientError::Ended.into());
        }
        for (index, kicked) in kicked.into_iter().enumerate() {
            if kicked {
                self.serve_queue(index)?;
            }
        }
        take_kick(wake)
    }

    /// Serves one queue until it is empty. Notifications are off meanwhile; the check after switching
    /// them on again finds what came in between (virtio 1.2 §2.7.13.4.1).
    pub(super) fn serve_queue(&mut self, index: usize) -> Result<(), WorkerError> {
        let Some(active) = self.queues.get_mut(index) else {
            return Ok(());
        };
        take_kick(&active.kick)?;
        let ring = |source| WorkerError::Ring {
            queue: index,
            source,
        };
        let (queue, memory) = (&mut active.queue, self.memory.queues());
        loop {
            queue.disable_notification(memory).map_err(ring)?;
            let mut served = false;
            while let Some(chain) = queue.iter(memory).map_err(ring)?.next() {
                let head = chain.head_index();
                let written = self.server.serve(&self.memory, chain)?;
                queue.add_used(memory, head, written).map_err(ring)?;
                served = true;
                // At once: the driver may wait for this answer before it sends the next request.
                if queue.needs_notification(memory).map_err(ring)? {
                    self.interrupt
                        .used_ring()
                        .map_err(os("raise the interrupt"))?;
                }
            }
            if !queue.enable_notification(memory).map_err(ring)? {
                return Ok(());
            }
            if !served {
                return Err(WorkerError::Empty(index));
            }
        }
    }
}

fn take_kick(event: &EventFd) -> Result<(), WorkerError> {
    descriptors::clear_event(event).map_err(os("take a kick"))
}

fn os(call: &'static str) -> impl FnOnce(io::Error) -> WorkerError {
    move |source| WorkerError::Os { call, source }
}

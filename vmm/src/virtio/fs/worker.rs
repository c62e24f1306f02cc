//! The device's thread: waits for kicks, takes requests from the queues, returns the answers.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::inspect::{Inspect, Node};

use super::client::ClientError;
use super::request::RequestServer;
use super::view::{MemoryView, ViewError};
use crate::descriptors;
use crate::gate::Gate;
use crate::seccomp::SeccompError;
use crate::virtio::{Activation, Interrupt, WorkerView, lock};

/// The state of the device: queues and open files, apart from the gate and the clock that the thread obeys.
pub(super) struct Worker {
    server: RequestServer,
    memory: MemoryView,
    queues: Vec<Queue>,
    /// The kick of each queue, waited for without the worker's lock.
    kicks: Arc<[EventFd]>,
    interrupt: Interrupt,
    /// The number of requests so far.
    served: u64,
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
        let parts = activation.queues.into_iter();
        let (mut queues, kicks): (Vec<_>, Vec<_>) =
            parts.map(|active| (active.queue, active.kick)).unzip();
        for queue in &mut queues {
            queue.set_event_idx(event_idx);
        }
        Ok(Self {
            server,
            memory: MemoryView::new(activation.memory)?,
            queues,
            kicks: kicks.into(),
            interrupt: activation.interrupt,
            served: 0,
        })
    }

    /// Serves until the guest breaks its queues, or a system call fails, and stands still while `gate`
    /// is closed, for which `wake` wakes the thread; `view` shows the worker between two turns.
    pub(super) fn run(self, gate: &Gate, wake: &Arc<EventFd>, view: &WorkerView) -> WorkerError {
        let (kicks, server) = (Arc::clone(&self.kicks), self.server.client().socket());
        let worker = Arc::new(Mutex::new(self));
        view.show(&worker);
        let kick = Arc::clone(wake);
        // Full means that the worker is woken already.
        let pass = gate.enter(move || drop(kick.write(1)));
        loop {
            if pass.is_closed() {
                pass.park();
            }
            let kicked = wait(&kicks, wake, &server);
            let served = kicked.and_then(|kicked| lock(&worker).serve(&kicked));
            if let Err(error) = served.and_then(|()| take_kick(wake)) {
                return error;
            }
        }
    }

    /// Serves the queues whose kick has come.
    fn serve(&mut self, kicked: &[bool]) -> Result<(), WorkerError> {
        for (index, kicked) in kicked.iter().enumerate() {
            if *kicked {
                self.serve_queue(index)?;
            }
        }
        Ok(())
    }

    /// Serves one queue until it is empty. Notifications are off meanwhile; the check after switching
    /// them on again finds what came in between (virtio 1.2 §2.7.13.4.1).
    pub(super) fn serve_queue(&mut self, index: usize) -> Result<(), WorkerError> {
        let (Some(queue), Some(kick)) = (self.queues.get_mut(index), self.kicks.get(index)) else {
            return Ok(());
        };
        take_kick(kick)?;
        let ring = |source| WorkerError::Ring {
            queue: index,
            source,
        };
        let memory = self.memory.queues();
        loop {
            queue.disable_notification(memory).map_err(ring)?;
            let mut served = false;
            while let Some(chain) = queue.iter(memory).map_err(ring)?.next() {
                let head = chain.head_index();
                let written = self.server.serve(&self.memory, chain)?;
                queue.add_used(memory, head, written).map_err(ring)?;
                served = true;
                self.served = self.served.saturating_add(1);
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

/// The queues, the requests and the open files.
impl Inspect for Worker {
    fn inspect(&self) -> Node {
        let mut queues = Node::new();
        for (number, queue) in self.queues.iter().enumerate() {
            let at = Node::new()
                .with("next_available", queue.next_avail())
                .with("next_used", queue.next_used());
            queues.set(number.to_string(), at);
        }
        Node::new()
            .with("queues", queues)
            .with("requests_served", self.served)
            .with("open_files", self.server.open_files())
    }
}

/// Waits for a kick, or for `wake`; returns which queues were kicked.
fn wait(kicks: &[EventFd], wake: &EventFd, server: &OwnedFd) -> Result<Vec<bool>, WorkerError> {
    let events = kicks.iter().chain([wake]).map(descriptors::of_event);
    let mut polled: Vec<_> = events
        .chain([server.as_fd()])
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    match poll(&mut polled, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(os("wait for requests")(errno.into())),
    }
    if polled.pop().is_some_and(|end| !end.revents().is_empty()) {
        return Err(ClientError::Ended.into());
    }
    let kicked = polled.iter().map(|kick| !kick.revents().is_empty());
    Ok(kicked.take(kicks.len()).collect())
}

fn take_kick(event: &EventFd) -> Result<(), WorkerError> {
    descriptors::clear_event(event).map_err(os("take a kick"))
}

fn os(call: &'static str) -> impl FnOnce(io::Error) -> WorkerError {
    move |source| WorkerError::Os { call, source }
}

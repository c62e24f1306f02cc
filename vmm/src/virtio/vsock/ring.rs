//! A virtqueue as the worker uses it.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::inspect::{Inspect, Node};

use crate::virtio::ActiveQueue;

/// Why a ring is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The ring's indices or descriptors make no sense.
    #[error("its indices make no sense")]
    Queue(#[from] virtio_queue::Error),
    /// The driver announces a buffer that does not exist.
    #[error("it announces buffers that do not exist")]
    Empty,
}

/// A queue whose driver is not trusted: a ring that makes no sense is not served any more, and
/// [`Ring::take_error`] returns the reason.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    kick: EventFd,
    state: RingState,
    /// Why the ring is broken, until the reason is taken.
    error: Option<RingError>,
}

/// State of a ring beside the indices in its queue: plain data.
#[derive(Debug, Default)]
struct RingState {
    /// Whether the ring is not served any more.
    broken: bool,
    /// Whether the driver was asked to kick.
    waiting: bool,
    /// Whether buffers were used since the last interrupt.
    used: bool,
}

/// Where the device stands in the ring.
impl Inspect for Ring {
    fn inspect(&self) -> Node {
        Node::new()
            .with("next_available", self.queue.next_avail())
            .with("next_used", self.queue.next_used())
            .with("broken", self.state.broken)
            .with("waits_for_kick", self.state.waiting)
    }
}

impl Ring {
    pub(super) fn new(active: ActiveQueue, event_idx: bool) -> Self {
        let ActiveQueue { mut queue, kick } = active;
        queue.set_event_idx(event_idx);
        Self {
            queue,
            kick,
            state: RingState::default(),
            error: None,
        }
    }

    /// Readable when the driver kicked.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The next chain. `None` when the ring is empty; the driver then kicks when it adds a chain.
    pub(super) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if let Some(chain) = self.pop_now(memory) {
            return Some(chain);
        }
        if self.state.broken {
            return None;
        }
        self.state.waiting = true;
        match self.queue.enable_notification(memory) {
            Ok(false) => None,
            // Added just before the driver was asked to kick.
            Ok(true) => {
                let chain = self.pop_now(memory);
                if chain.is_none() {
                    self.fail(RingError::Empty);
                }
                chain
            }
            Err(err) => {
                self.fail(err.into());
                None
            }
        }
    }

    /// The reason why the ring is not served any more, once.
    pub(super) fn take_error(&mut self) -> Option<RingError> {
        self.error.take()
    }

    /// Stops serving the ring. The first error is the reason.
    fn fail(&mut self, error: RingError) {
        if !std::mem::replace(&mut self.state.broken, true) {
            self.error = Some(error);
        }
    }

    fn pop_now<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if self.state.broken {
            return None;
        }
        let next = self.queue.iter(memory).map(|mut chains| chains.next());
        let chain = next.map_err(|err| self.fail(err.into())).ok()??;
        if std::mem::take(&mut self.state.waiting)
            && let Err(err) = self.queue.disable_notification(memory)
        {
            self.fail(err.into());
        }
        Some(chain)
    }

    /// Returns a chain to the driver, with `len` bytes written.
    pub(super) fn put_used(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) {
        self.state.used = true;
        if let Err(err) = self.queue.add_used(memory, head, len) {
            self.fail(err.into());
        }
    }

    /// Whether the driver wants to be interrupted for what was used since the last call.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        std::mem::take(&mut self.state.used)
            && self.queue.needs_notification(memory).unwrap_or(true)
    }
}

//! One virtqueue as the worker uses it.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::ActiveQueue;

/// A queue whose driver is not trusted: one that makes nonsense of its ring is not served any more.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    kick: EventFd,
    broken: bool,
    /// The driver was asked to kick.
    waiting: bool,
    /// Buffers were used since the last interrupt.
    used: bool,
}

impl Ring {
    pub(super) fn new(active: ActiveQueue, event_idx: bool) -> Self {
        let ActiveQueue { mut queue, kick } = active;
        queue.set_event_idx(event_idx);
        Self {
            queue,
            kick,
            broken: false,
            waiting: false,
            used: false,
        }
    }

    /// Readable when the driver kicked.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The next chain. `None` when there is none; the driver then kicks when it adds one.
    pub(super) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if let Some(chain) = self.pop_now(memory) {
            return Some(chain);
        }
        if self.broken {
            return None;
        }
        self.waiting = true;
        match self.queue.enable_notification(memory) {
            Ok(false) => None,
            // Added just before the driver was asked to kick.
            Ok(true) => {
                let chain = self.pop_now(memory);
                self.broken = chain.is_none();
                chain
            }
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }

    fn pop_now<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if self.broken {
            return None;
        }
        let Ok(mut chains) = self.queue.iter(memory) else {
            self.broken = true;
            return None;
        };
        let chain = chains.next()?;
        if std::mem::take(&mut self.waiting) {
            self.broken = self.queue.disable_notification(memory).is_err();
        }
        Some(chain)
    }

    /// Gives a chain back, `len` bytes of it written.
    pub(super) fn put_used(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) {
        self.used = true;
        self.broken |= self.queue.add_used(memory, head, len).is_err();
    }

    /// Whether the driver wants to be interrupted for what was used since the last call.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        std::mem::take(&mut self.used) && self.queue.needs_notification(memory).unwrap_or(true)
    }
}

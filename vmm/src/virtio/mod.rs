//! The virtio devices of the machine and the seam to their transport.
//!
//! [`mmio`] is the transport (virtio 1.2 §4.2); [`vsock`] and [`fs`] are the devices. The transport
//! collects what the driver sets up and hands all of it over once, at `DRIVER_OK`
//! ([`VirtioDevice::activate`]). From then on the queues' configuration is frozen: a device owns its
//! queues and works on its own thread, woken by the kick descriptors (ioeventfd), and raises its line
//! by [`Interrupt`] (irqfd). A driver that resets an active device can't bring the device back. A device that
//! cannot be activated ends the VM: the guest could only wait for the device.
//!
//! Numbers here are the guest's, or count the guest's actions: none is added or multiplied unchecked.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod fs;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub mod mmio;
mod queue_setup;
mod standby;
pub mod vsock;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::inspect::{Inspect, Node};

/// `InterruptStatus` bit: a queue has used buffers (virtio 1.2 §4.2.2).
pub const INTERRUPT_USED_RING: u32 = 1;

/// A device behind the mmio transport.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2 §5): 19 vsock, 26 file system.
    fn device_id(&self) -> u32;

    /// Offered feature bits, `VIRTIO_F_VERSION_1` among them.
    fn features(&self) -> u64;

    /// Largest size of each queue; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device's configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes over the queues and starts working. Called once, with queues that were checked to lie in
    /// guest memory.
    ///
    /// # Errors
    /// [`ActivateError`], which is the guest's end.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The state that the device's thread works on, without waiting for the thread; empty for a device without one.
    fn inspect_worker(&self) -> Node {
        Node::new()
    }
}

/// A device's worker as other threads look at it, as long as the worker's thread has it.
#[derive(Clone, Default)]
struct WorkerView(Arc<OnceLock<Weak<Mutex<dyn Inspect + Send>>>>);

impl WorkerView {
    /// Shows `worker`, which is locked for a turn of work at a time. A device has one worker in its life.
    fn show<W: Inspect + Send + 'static>(&self, worker: &Arc<Mutex<W>>) {
        let worker: Weak<Mutex<W>> = Arc::downgrade(worker);
        let _first = self.0.set(worker);
    }
}

impl Inspect for WorkerView {
    fn inspect(&self) -> Node {
        let Some(worker) = self.0.get() else {
            return Node::new().with("state", "waits for the driver");
        };
        let Some(worker) = worker.upgrade() else {
            return Node::new().with("state", "has ended");
        };
        let looked = worker.try_lock().map(|worker| worker.inspect());
        match looked {
            Ok(state) => state.with("state", "is idle"),
            Err(_) => Node::new().with("state", "works"),
        }
    }
}

/// The worker, for one turn of work. A panic ends the process, so a lock is never found poisoned.
fn lock<W>(worker: &Mutex<W>) -> MutexGuard<'_, W> {
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a configuration space of the bytes `config`: those past its end are zero.
fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = config.get(at..).unwrap_or_default();
    let len = rest.len().min(data.len());
    data.fill(0);
    data[..len].copy_from_slice(&rest[..len]);
}

/// Everything that a device gets when the driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Guest RAM, where the queues and their buffers lie.
    pub memory: GuestMemoryMmap,
    /// Feature bits the driver accepted, a subset of the offered ones.
    pub features: u64,
    /// Queues in the order of [`VirtioDevice::queue_sizes`].
    pub queues: Vec<ActiveQueue>,
    /// Raises the device's line.
    pub interrupt: Interrupt,
}

/// A queue in use.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue: ready, and checked to lie in guest memory.
    pub queue: Queue,
    /// Readable (non-blocking) when the driver has notified this queue.
    pub kick: EventFd,
}

/// The device's interrupt line and its status register.
#[derive(Clone, Debug)]
pub struct Interrupt {
    line: Arc<EventFd>,
    status: Arc<AtomicU32>,
}

impl Interrupt {
    /// An interrupt by `line`, which is registered with KVM as the irqfd of the device's GSI.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self {
            line: Arc::new(line),
            status: Arc::new(AtomicU32::new(0)),
        }
    }

    /// Notifies the driver that a queue has used buffers.
    ///
    /// # Errors
    /// `write(2)`'s on the event descriptor.
    pub fn used_ring(&self) -> std::io::Result<()> {
        self.status.fetch_or(INTERRUPT_USED_RING, Ordering::SeqCst);
        self.line.write(1)
    }

    /// Value of the `InterruptStatus` register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Takes a write of the `InterruptACK` register: clears the given bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The number of queues is not the device's.
    #[error("virtio device {device_id} was activated with {queues} queues")]
    Queues {
        /// Device id (virtio 1.2 §5).
        device_id: u32,
        /// Number of queues handed over.
        queues: usize,
    },
    /// A queue that the driver did not make ready, or that lies outside of guest memory.
    #[error("the driver of virtio device {device_id} set up a queue that cannot be used")]
    QueueSetup {
        /// Device id (virtio 1.2 §5).
        device_id: u32,
    },
    /// The device was activated before, or its worker has ended.
    #[error("virtio device {device_id} has no worker")]
    Worker {
        /// Device id (virtio 1.2 §5).
        device_id: u32,
    },
}

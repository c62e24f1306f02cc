//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2).
//!
//! The registers live on the vCPU's thread; the only way from here to a device's worker is
//! [`VirtioDevice::activate`], once. The driver's way to activation (§3.1.1):
//!
//! ```text
//! 0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK ─► (reset) dead
//! ▲        │             │           │ queues are set up only here
//! └────────┴── reset ────┴───────────┘
//! ```
//!
//! Steps out of order are ignored. After `DRIVER_OK` nothing can be changed any more: the device works
//! on the queues as they were checked then. When the device cannot, the guest's write is an error.

mod state;

use std::fmt;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::{VIRTIO_ID_FS, VIRTIO_ID_VSOCK};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::inspect::{Inspect, Node};

use super::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use state::{MmioState, half};

/// Offset of `QueueNotify`, where the set-up registers the kick descriptors.
pub const QUEUE_NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Value of `MagicValue`: "virt" (§4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Value of `Version`: 2, not legacy (§4.2.2).
const VERSION: u32 = 2;
/// Value of `VendorID`: "WASM"; drivers ignore it.
const VENDOR: u32 = 0x4d53_4157;
/// Value of `SHMLen` for a shared memory region that does not exist (§4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;
/// Status after each step of the initialisation.
const ACKNOWLEDGED: u32 = ACKNOWLEDGE;
const DRIVEN: u32 = ACKNOWLEDGED | DRIVER;
const NEGOTIATED: u32 = DRIVEN | FEATURES_OK;
const READY: u32 = NEGOTIATED | DRIVER_OK;

/// The registers of one device.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    kicks: Vec<EventFd>,
    interrupt: Interrupt,
    state: MmioState,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.device.device_id())
            .field("status", &self.state.status)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Registers of `device`; `kicks` has one descriptor per queue.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        kicks: Vec<EventFd>,
        interrupt: Interrupt,
    ) -> Self {
        let state = MmioState::new(device.queue_sizes());
        Self {
            device,
            memory,
            kicks,
            interrupt,
            state,
        }
    }

    /// The device's name in virtio's words, or its id.
    #[must_use]
    pub fn name(&self) -> String {
        match self.device.device_id() {
            VIRTIO_ID_VSOCK => "vsock".to_owned(),
            VIRTIO_ID_FS => "fs".to_owned(),
            id => format!("device {id}"),
        }
    }

    /// Carries out the driver's read of a register (32 bits) or of configuration space (any width).
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(register::VIRTIO_MMIO_CONFIG.into()) {
            self.device.read_config(offset, data);
        } else if let (Ok(offset), Ok(value)) =
            (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
        {
            *value = self.register(offset).to_le_bytes();
        }
    }

    /// Carries out the driver's write of a register (32 bits). Configuration space is read-only.
    ///
    /// # Errors
    /// [`ActivateError`], when the write set `DRIVER_OK` and the device does not start.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ActivateError> {
        match (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            (Ok(offset), Ok(value)) => self.set_register(offset, u32::from_le_bytes(value)),
            _ => Ok(()),
        }
    }

    fn register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.device.features(), self.state.device_features_page)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .state
                .selected()
                .map_or(0, |queue| queue.size_max().into()),
            register::VIRTIO_MMIO_QUEUE_READY => self
                .state
                .selected()
                .map_or(0, |queue| queue.ready().into()),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.state.status,
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) -> Result<(), ActivateError> {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.state.device_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.state.driver_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES if self.state.status == DRIVEN => {
                self.state.set_driver_features(value);
            }
            register::VIRTIO_MMIO_QUEUE_SEL => self.state.queue_select = value,
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => return self.set_status(value),
            _ if self.state.status == NEGOTIATED => self.state.set_queue_register(offset, value),
            _ => {}
        }
        Ok(())
    }

    /// Makes one transition of the diagram above, or none.
    fn set_status(&mut self, value: u32) -> Result<(), ActivateError> {
        match (self.state.status, value) {
            (_, 0) if self.state.activated => self.state.status = NEEDS_RESET,
            (_, 0) => self.state.reset(),
            (0, ACKNOWLEDGED) | (ACKNOWLEDGED, DRIVEN) => self.state.status = value,
            (DRIVEN, NEGOTIATED) if self.features_are_acceptable() => {
                self.state.status = NEGOTIATED;
            }
            (NEGOTIATED, READY) => return self.activate(),
            (_, value) if value & FAILED != 0 => self.state.status |= FAILED,
            _ => {}
        }
        Ok(())
    }

    fn features_are_acceptable(&self) -> bool {
        let unknown = self.state.driver_features & !self.device.features();
        unknown == 0 && has(self.state.driver_features, VIRTIO_F_VERSION_1)
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        self.state.status |= NEEDS_RESET;
        let device_id = self.device.device_id();
        let queues = self
            .take_queues()
            .ok_or(ActivateError::QueueSetup { device_id })?;
        let activation = Activation {
            memory: self.memory.clone(),
            features: self.state.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        };
        self.state.activated = true;
        self.device.activate(activation)?;
        self.state.status = READY;
        Ok(())
    }

    /// All queues, checked, with their kicks; `None` when a queue can't be used.
    fn take_queues(&mut self) -> Option<Vec<ActiveQueue>> {
        let event_idx = has(self.state.driver_features, VIRTIO_RING_F_EVENT_IDX);
        let queues = self
            .state
            .queues
            .iter()
            .map(|setup| setup.build(&self.memory, event_idx));
        let queues = queues.collect::<Option<Vec<Queue>>>()?;
        let kicks = self.kicks.drain(..);
        Some(
            queues
                .into_iter()
                .zip(kicks)
                .map(|(queue, kick)| ActiveQueue { queue, kick })
                .collect(),
        )
    }
}

/// The registers, and below `worker` the state that the device's thread works on.
impl Inspect for MmioTransport {
    fn inspect(&self) -> Node {
        let mut queues = Node::new();
        for (number, queue) in self.state.queues.iter().enumerate() {
            queues.set(number.to_string(), queue.inspect());
        }
        Node::new()
            .with("status", format!("{:#x}", self.state.status))
            .with("driver_ready", self.state.activated)
            .with(
                "driver_features",
                format!("{:#x}", self.state.driver_features),
            )
            .with("interrupt_pending", self.interrupt.status() != 0)
            .with("queues", queues)
            .with("worker", self.device.inspect_worker())
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

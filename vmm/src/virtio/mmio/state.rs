//! The registers that the driver has set so far: plain data, apart from the device, its memory and its descriptors.

use virtio_bindings::virtio_mmio as register;

use crate::virtio::queue_setup::QueueSetup;

/// The registers of one device that keep what the driver writes.
#[derive(Debug)]
pub(super) struct MmioState {
    pub(super) status: u32,
    pub(super) device_features_page: u32,
    pub(super) driver_features_page: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) queues: Vec<QueueSetup>,
    /// Whether the device has its queues: no reset brings them back.
    pub(super) activated: bool,
}

impl MmioState {
    /// The registers at reset, with a queue for each of the largest sizes.
    pub(super) fn new(queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes.iter().map(|size| QueueSetup::new(*size));
        Self {
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queues.collect(),
            activated: false,
        }
    }

    /// Sets those 32 bits of the features that the driver has selected.
    pub(super) fn set_driver_features(&mut self, value: u32) {
        set_half(&mut self.driver_features, self.driver_features_page, value);
    }

    /// The queue that the driver has selected, if there is one.
    pub(super) fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// Sets a register of the selected queue.
    pub(super) fn set_queue_register(&mut self, offset: u32, value: u32) {
        let index = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value),
            register::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, 0, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, 1, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, 0, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }

    /// Resets a device that was never activated.
    pub(super) fn reset(&mut self) {
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueSetup::reset);
    }
}

/// The 32 bits that `page` selects; pages beyond 1 hold no features.
pub(super) fn half(value: u64, page: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match page {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

/// Sets the 32 bits that `page` selects.
pub(super) fn set_half(target: &mut u64, page: u32, value: u32) {
    match page {
        0 => *target = *target & !u64::from(u32::MAX) | u64::from(value),
        1 => *target = *target & u64::from(u32::MAX) | u64::from(value) << 32,
        _ => {}
    }
}

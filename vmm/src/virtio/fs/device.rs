//! What the transport sees: features, configuration space and activation.

use std::error::Error;
use std::fmt;
use std::io;
use std::thread;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::request::RequestServer;
use super::worker::Worker;
use super::{QUEUE_SIZES, TAG, Tree};
use crate::virtio::{ActivateError, Activation, VirtioDevice};

/// `struct virtio_fs_config` (virtio 1.2 §5.11.4): the tag, padded with zeros, then the number of
/// request queues, 32 bits.
const CONFIG_BYTES: usize = TAG_BYTES + 4;
const TAG_BYTES: usize = 36;
const REQUEST_QUEUES: u32 = 1;

/// Told once, on the worker's thread, why no file is served any more.
type EndFn = Box<dyn FnOnce(&(dyn Error + 'static)) + Send>;

/// The device before and after its activation.
pub struct FsDevice {
    /// Handed to the worker at activation.
    idle: Option<(RequestServer, EndFn)>,
}

impl FsDevice {
    /// A device that serves `tree`. `on_end` is called when it can't any more, which the guest can
    /// provoke; whoever waits for a file then waits for ever, so the VM is to be ended.
    #[must_use]
    pub fn new(tree: Tree, on_end: impl FnOnce(&(dyn Error + 'static)) + Send + 'static) -> Self {
        Self {
            idle: Some((RequestServer::new(tree), Box::new(on_end))),
        }
    }
}

impl fmt::Debug for FsDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FsDevice")
            .field("active", &self.idle.is_none())
            .finish()
    }
}

impl VirtioDevice for FsDevice {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..TAG.len()].copy_from_slice(TAG.as_bytes());
        config[TAG_BYTES..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| config.get(at..))
            .unwrap_or_default();
        let len = rest.len().min(data.len());
        data.fill(0);
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let device_id = self.device_id();
        if activation.queues.len() != QUEUE_SIZES.len() {
            return Err(ActivateError::Queues {
                device_id,
                queues: activation.queues.len(),
            });
        }
        let worker_error = |source| ActivateError::Worker { device_id, source };
        let (server, on_end) = self
            .idle
            .take()
            .ok_or_else(|| worker_error(io::ErrorKind::AlreadyExists.into()))?;
        let worker =
            Worker::new(server, activation).map_err(|err| worker_error(io::Error::other(err)))?;
        thread::Builder::new()
            .name("fs".into())
            .spawn(move || worker.run(on_end))
            .map(drop)
            .map_err(worker_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> FsDevice {
        FsDevice::new(Tree::for_test(std::path::Path::new("/nonexistent")), |_| {})
    }

    #[test]
    fn the_configuration_names_the_tag_and_one_queue() {
        let mut config = [0xff; CONFIG_BYTES + 4];
        device().read_config(0, &mut config);
        assert_eq!(&config[..5], b"root\0");
        assert_eq!(config[TAG_BYTES..], [1, 0, 0, 0, 0, 0, 0, 0]);
        let mut byte = [0xff];
        device().read_config(u64::MAX, &mut byte);
        assert_eq!(byte, [0]);
    }
}

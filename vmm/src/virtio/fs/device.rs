//! The device as its transport sees it: features, configuration space and activation.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use wasmvm_protocol::inspect::{Inspect, Node};

use super::request::RequestServer;
use super::worker::Worker;
use super::{QUEUE_SIZES, TAG};
use crate::file_server::FileServer;
use crate::gate::Gate;
use crate::seccomp::Thread;
use crate::virtio::standby::Standby;
use crate::virtio::{ActivateError, Activation, VirtioDevice, WorkerView, read_bytes};

/// `struct virtio_fs_config` (virtio 1.2 §5.11.4): the tag, padded with zeros, then the number of
/// request queues, 32 bits.
const CONFIG_BYTES: usize = TAG_BYTES + 4;
const TAG_BYTES: usize = 36;
const REQUEST_QUEUES: u32 = 1;

/// The device before and after its activation.
pub struct FsDevice {
    standby: Standby<Activation>,
    view: WorkerView,
}

impl FsDevice {
    /// A device whose files `server` opens, and that stops at `gate`. `on_end` is called, on the worker's thread,
    /// when the device can't serve any more, which the guest can provoke; a guest's process that waits for a file
    /// then waits for ever, so the VM is to be ended.
    ///
    /// # Errors
    /// `eventfd(2)`'s and `clone(2)`'s.
    pub fn new(
        server: FileServer,
        gate: &Gate,
        on_end: impl FnOnce(&(dyn Error + 'static)) + Send + 'static,
    ) -> io::Result<Self> {
        let (server, gate) = (RequestServer::new(server), gate.clone());
        let view = WorkerView::default();
        let shown = view.clone();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let standby = Standby::spawn(VIRTIO_ID_FS, Thread::Fs, move |waiting| {
            let serve = || match waiting.wait()? {
                Some(activation) => Err(Worker::new(server, activation)?.run(&gate, &wake, &shown)),
                None => Ok(()),
            };
            if let Err(error) = serve() {
                on_end(&error);
            }
        })?;
        Ok(Self { standby, view })
    }
}

impl fmt::Debug for FsDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FsDevice")
            .field("active", &!self.standby.is_waiting())
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
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let device_id = self.device_id();
        if activation.queues.len() != QUEUE_SIZES.len() {
            return Err(ActivateError::Queues {
                device_id,
                queues: activation.queues.len(),
            });
        }
        self.standby.start(activation)
    }

    fn inspect_worker(&self) -> Node {
        self.view.inspect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> FsDevice {
        let tree = super::super::tree_for_test(std::path::Path::new("/nonexistent"), 512);
        let server = FileServer::on_a_thread(tree);
        FsDevice::new(server, &Gate::default(), |_| {}).unwrap()
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

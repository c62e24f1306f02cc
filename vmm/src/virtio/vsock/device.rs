//! The device as its transport sees it: features, configuration space and activation.

use std::fmt;
use std::io;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use wasmvm_protocol::inspect::{Inspect, Node};

use super::handle::{VsockEventFn, VsockHandle};
use super::worker::{HostSide, Worker};
use crate::gate::Gate;
use crate::seccomp::Thread;
use crate::virtio::standby::Standby;
use crate::virtio::{ActivateError, Activation, ActiveQueue, VirtioDevice, WorkerView, read_bytes};

/// Sizes of the receive, transmit and event queues. Linux fills the whole receive queue with a page
/// each, so its size is guest memory; a transmit queue costs nothing but its ring.
pub const QUEUE_SIZES: [u16; 3] = [32, 64, 8];

/// The device before and after its activation.
pub struct VsockDevice {
    guest_cid: u32,
    standby: Standby<(Activation, [ActiveQueue; QUEUE_SIZES.len()])>,
    view: WorkerView,
}

impl VsockDevice {
    /// A device for the guest with context id `guest_cid`, whose worker stops at `gate`, and the
    /// handle to it.
    ///
    /// # Errors
    /// `eventfd(2)`'s, `epoll_create(2)`'s and `clone(2)`'s.
    pub fn new(
        guest_cid: u32,
        gate: &Gate,
        on_event: VsockEventFn,
    ) -> io::Result<(Self, VsockHandle)> {
        let (handle, orders) = VsockHandle::new()?;
        let host = HostSide::new(guest_cid, orders, on_event)?;
        let (gate, view) = (gate.clone(), WorkerView::default());
        let shown = view.clone();
        let standby = Standby::spawn(VIRTIO_ID_VSOCK, Thread::Vsock, move |waiting| match waiting
            .wait()
        {
            Ok(Some((activation, queues))) => {
                Worker::new(activation, queues, host).run(&gate, &shown);
            }
            Ok(None) => {}
            Err(err) => host.fail(err.into()),
        })?;
        let device = Self {
            guest_cid,
            standby,
            view,
        };
        Ok((device, handle))
    }
}

impl fmt::Debug for VsockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockDevice")
            .field("guest_cid", &self.guest_cid)
            .field("active", &!self.standby.is_waiting())
            .finish()
    }
}

impl VirtioDevice for VsockDevice {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_vsock_config`: the guest's context id, 64 bits (virtio 1.2 §5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let device_id = self.device_id();
        let queues = <[_; QUEUE_SIZES.len()]>::try_from(std::mem::take(&mut activation.queues))
            .map_err(|queues| ActivateError::Queues {
                device_id,
                queues: queues.len(),
            })?;
        self.standby.start((activation, queues))
    }

    fn inspect_worker(&self) -> Node {
        self.view.inspect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmvm_protocol::ports::GUEST_CID;

    #[test]
    fn the_configuration_is_the_context_id_and_then_nothing() {
        let (device, _handle) =
            VsockDevice::new(GUEST_CID, &Gate::default(), Box::new(|_| {})).unwrap();
        let config = u64::from(GUEST_CID).to_le_bytes();
        for offset in (0..=16).chain([u64::MAX - 8, u64::MAX]) {
            for width in 0..=8 {
                let mut data = [0xff; 8];
                device.read_config(offset, &mut data[..width]);
                let byte = |at: u64| {
                    usize::try_from(at)
                        .ok()
                        .and_then(|at| config.get(at).copied())
                };
                let expected =
                    (0..width as u64).map(|at| offset.checked_add(at).and_then(byte).unwrap_or(0));
                assert!(
                    data[..width].iter().copied().eq(expected),
                    "{width} bytes at {offset}"
                );
                assert!(data[width..].iter().all(|byte| *byte == 0xff));
            }
        }
    }
}

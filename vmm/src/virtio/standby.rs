//! The thread of a device, which waits for the driver.
//!
//! It is started with the device, not when the driver is ready: the vCPU's thread, on which that
//! happens, starts no threads.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::ActivateError;

/// The device's end: hands over what the thread is to work with, once.
#[derive(Debug)]
pub(super) struct Standby<T> {
    device_id: u32,
    start: Option<SyncSender<T>>,
}

/// The thread's end.
#[derive(Debug)]
pub(super) struct Waiting<T>(Receiver<T>);

impl<T: Send + 'static> Standby<T> {
    /// Starts a thread with this name.
    ///
    /// # Errors
    /// `clone(2)`'s.
    pub(super) fn spawn(
        device_id: u32,
        name: &str,
        work: impl FnOnce(Waiting<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (start, started) = sync_channel(1);
        thread::Builder::new()
            .name(name.into())
            .spawn(move || work(Waiting(started)))?;
        Ok(Self {
            device_id,
            start: Some(start),
        })
    }

    /// # Errors
    /// [`ActivateError::Worker`] the second time, and when the thread has ended.
    pub(super) fn start(&mut self, with: T) -> Result<(), ActivateError> {
        let device_id = self.device_id;
        let start = self.start.take();
        start
            .and_then(|start| start.send(with).ok())
            .ok_or(ActivateError::Worker { device_id })
    }

    /// Whether the driver is not ready yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.start.is_some()
    }
}

impl<T> Waiting<T> {
    /// Waits for the driver. `None` when the device is gone.
    pub(super) fn wait(self) -> Option<T> {
        self.0.recv().ok()
    }
}

//! The thread of a device, which waits for the driver.
//!
//! The thread is started with the device, not when the driver is ready: the vCPU's thread, on which the driver
//! becomes ready, starts no threads. The device's thread is confined before it waits.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::ActivateError;
use crate::seccomp::{SeccompError, Thread, confine};

/// The device's end: hands over what the thread needs for its work, once.
#[derive(Debug)]
pub(super) struct Standby<T> {
    device_id: u32,
    start: Option<SyncSender<T>>,
}

/// The thread's end: waits for what [`Standby::start`] hands over.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    thread: Thread,
    started: Receiver<T>,
}

impl<T: Send + 'static> Standby<T> {
    /// Starts the device's thread.
    ///
    /// # Errors
    /// `clone(2)`'s.
    pub(super) fn spawn(
        device_id: u32,
        thread: Thread,
        work: impl FnOnce(Waiting<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (start, started) = sync_channel(1);
        std::thread::Builder::new()
            .name(thread.name().into())
            .spawn(move || work(Waiting { thread, started }))?;
        Ok(Self {
            device_id,
            start: Some(start),
        })
    }

    /// Hands `with` over to the thread.
    ///
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
    /// Confines the thread, as the last step of its start, and waits for the driver. `None` when the
    /// device was dropped.
    ///
    /// # Errors
    /// [`SeccompError`].
    pub(super) fn wait(self) -> Result<Option<T>, SeccompError> {
        confine(self.thread)?;
        Ok(self.started.recv().ok())
    }
}

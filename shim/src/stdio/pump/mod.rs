//! Copying between FIFOs and the guest's streams.

use std::fs::File;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::fifo::{InputFifo, OutputFifo};
use super::switch::{OutputPhase, StdinPhase, StdioSwitch};
use super::{Sinks, Stdio};
use crate::guest_deadline::{GuestClock, GuestDeadline};
use crate::log::spawn_in_span;

/// The buffer of one stream, bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long `Delete` waits for a reader of the output, as runc's shim.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long the guest may take, all waits together, to deliver what an ended program has written.
const REST_MAX: Duration = Duration::from_secs(10);
/// How long a client that has not opened standard input when the program starts may still take. A client
/// that came and went before `Create` looks the same.
const CLIENT_LATE_MAX: Duration = Duration::from_millis(100);
/// How much the guest may send after its program's exit, bytes: more than agent, virtqueues, VMM and socket
/// hold of one stream.
const REST_BYTES_MAX: usize = 4 << 20;

/// The streams to the guest that are not null: stdin from the host to the guest, the others from the guest
/// to the host.
#[derive(Debug, Default)]
pub(crate) struct GuestStreams {
    pub stdin: Option<UnixStream>,
    pub stdout: Option<UnixStream>,
    pub stderr: Option<UnixStream>,
}

/// The copies of one instance, running.
#[derive(Debug)]
pub(crate) struct Pumps {
    stdin: Option<AbortHandle>,
    switch: StdioSwitch,
    outputs: JoinSet<Option<File>>,
    /// The shim's reading ends of finished outputs: they keep in the FIFO what has not been read yet.
    kept: Vec<File>,
    sinks: Sinks,
}

impl Pumps {
    /// Starts to copy each FIFO that has a stream.
    #[must_use]
    pub(crate) fn start(
        stdio: Stdio,
        guest: GuestStreams,
        switch: &StdioSwitch,
        clock: &GuestClock,
    ) -> Self {
        let mut outputs = JoinSet::new();
        for (fifo, stream) in [(stdio.stdout, guest.stdout), (stdio.stderr, guest.stderr)] {
            if let (Some(fifo), Some(guest)) = (fifo, stream) {
                let copy = OutputCopy {
                    guest,
                    fifo,
                    switch: switch.clone(),
                    phase: switch.output.subscribe(),
                    deadline: GuestDeadline::new(clock.clone(), REST_MAX),
                    rest_bytes: REST_BYTES_MAX,
                };
                outputs.spawn(copy.run());
            }
        }
        let stdin = match (stdio.stdin, guest.stdin) {
            (Some(fifo), Some(stream)) => {
                let phase = switch.stdin.subscribe();
                Some(spawn_in_span(copy_input(fifo, stream, phase)).abort_handle())
            }
            _ => None,
        };
        Self {
            stdin,
            switch: switch.clone(),
            outputs,
            kept: Vec::new(),
            sinks: stdio.sinks,
        }
    }

    /// Waits, after the program's exit, until its output has been read, and closes the FIFOs. A reader has
    /// all the time it wants until [`StdioSwitch::begin_drain`], then [`DRAIN_MAX`]. Returns whether everything
    /// was delivered, as far as the shim can tell.
    pub(crate) async fn drain(&mut self) -> bool {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        self.switch.advance(OutputPhase::Ended);
        let mut leaving = self.switch.output.subscribe();
        let ended = tokio::select! {
            biased;
            () = async {
                while let Some(output) = self.outputs.join_next().await {
                    self.kept.extend(output.ok().flatten());
                }
            } => true,
            () = async {
                // `wait_for` fails only without a sender, and the switch holds the sender.
                let _ = leaving.wait_for(|phase| *phase == OutputPhase::Leaving).await;
                tokio::time::sleep(DRAIN_MAX).await;
            } => false,
        };
        // Waits until the copies have ended, and the FIFOs with them.
        self.outputs.shutdown().await;
        // A sink has had its time already when the outputs were not read in time.
        let left = if ended { DRAIN_MAX } else { Duration::ZERO };
        self.sinks.finish(Instant::now() + left).await;
        ended
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        if let Some(stdin) = &self.stdin {
            stdin.abort();
        }
    }
}

/// The copy of an output stream, from the guest to the client.
struct OutputCopy {
    guest: UnixStream,
    fifo: OutputFifo,
    switch: StdioSwitch,
    phase: watch::Receiver<OutputPhase>,
    /// The time that the guest has, once the program has exited. Time that a reader takes does not count.
    deadline: GuestDeadline,
    /// How much the guest may still send after the program's exit, bytes.
    rest_bytes: usize,
}

impl OutputCopy {
    async fn run(mut self) -> Option<File> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let bytes = match self.read(&mut buffer).await {
                Ok(0) => break,
                Ok(bytes) => bytes,
                // The VM has ended; the data that it had sent has been read.
                Err(error) => {
                    tracing::debug!(stream = self.fifo.stream, %error, "stream broken");
                    break;
                }
            };
            if let Err(error) = self.write_all(&buffer[..bytes]).await {
                tracing::debug!(stream = self.fifo.stream, %error, "output dropped");
                break;
            }
        }
        self.fifo.reader
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ended = |phase: &OutputPhase| *phase >= OutputPhase::Ended;
        let read = tokio::select! {
            biased;
            read = self.guest.read(buffer) => Some(read),
            // An error means that the pumps were dropped: the rest is not waited for.
            _ = self.phase.wait_for(ended) => None,
        };
        if let Some(read) = read {
            return self.count(read);
        }
        match self.deadline.wait(self.guest.read(buffer)).await {
            Some(read) => self.count(read),
            None => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the guest keeps the stream of an ended program open",
            )),
        }
    }

    /// Counts the bytes of a read: a program that has exited has a bounded rest on its way.
    fn count(&mut self, read: io::Result<usize>) -> io::Result<usize> {
        let bytes = read?;
        if *self.phase.borrow() >= OutputPhase::Ended {
            let left = self.rest_bytes.checked_sub(bytes);
            self.rest_bytes = left.ok_or_else(|| {
                io::Error::other("the guest sends more than an ended program can have left")
            })?;
        }
        Ok(bytes)
    }

    /// Waits for the reader until `Delete` comes. Then a full FIFO that only the shim holds open has no
    /// reader to wait for: without the shim's reading end the kernel says so (`EPIPE`).
    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.fifo.writer.try_write(bytes) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.switch.count_read(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let leaving = |phase: &OutputPhase| *phase == OutputPhase::Leaving;
                    let _unread = self.switch.waits_for_reader();
                    tokio::select! {
                        ready = self.fifo.writer.writable() => ready?,
                        // An error means that the pumps were dropped: `Delete` cannot come any more.
                        _ = self.phase.wait_for(leaving), if self.fifo.reader.is_some() => {
                            self.fifo.reader = None;
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Copies standard input to the guest. Input ends with `CloseIO`, not with a client that disconnects:
/// another client may come. But `ctr` can only ask for `CloseIO` once `Create` has been answered, and its
/// input may have ended before. So nothing is read until `Start`, and a FIFO that has no writer then (a
/// read says so) has had its last writer, unless another writer comes within [`CLIENT_LATE_MAX`].
async fn copy_input(
    mut fifo: InputFifo,
    mut guest: UnixStream,
    mut phase: watch::Receiver<StdinPhase>,
) {
    let held = |phase: &StdinPhase| *phase == StdinPhase::Held;
    if phase.wait_for(|phase| !held(phase)).await.is_err() {
        return;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut may_be_late = true;
    loop {
        match read(&fifo, &mut buffer) {
            Ok(0) if may_be_late => {
                let closing = |phase: &StdinPhase| *phase == StdinPhase::Closing;
                // A timeout and a change of phase both end this wait.
                let _ = tokio::time::timeout(CLIENT_LATE_MAX, phase.wait_for(closing)).await;
            }
            Ok(0) => break,
            Ok(bytes) => {
                if let Err(error) = guest.write_all(&buffer[..bytes]).await {
                    tracing::debug!(%error, "the program closed its standard input");
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_for_input(&mut fifo, &mut phase).await {
                    break;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read standard input");
                break;
            }
        }
        may_be_late = false;
    }
    // Fails when the guest has ended; then there is nothing to shut down.
    let _ = guest.shutdown().await;
}

/// Waits for input in an empty FIFO; whether there can be more.
async fn wait_for_input(fifo: &mut InputFifo, phase: &mut watch::Receiver<StdinPhase>) -> bool {
    let closing = *phase.borrow() == StdinPhase::Closing;
    if fifo.writer.is_none() {
        if closing {
            return false;
        }
        if let Err(error) = fifo.hold() {
            tracing::warn!(
                error = crate::error::chain(&error),
                "standard input ends here"
            );
            return false;
        }
    }
    tokio::select! {
        // A failure shows in the next read.
        _ = fifo.reader.readable() => {}
        _ = phase.wait_for(|phase| *phase == StdinPhase::Closing) => fifo.writer = None,
    }
    true
}

/// Reads without waiting. Without the shim's writing end the FIFO itself is asked, whether there is a
/// writer and what lies in the FIFO: the runtime may not have noticed yet.
fn read(fifo: &InputFifo, buffer: &mut [u8]) -> io::Result<usize> {
    if fifo.writer.is_some() {
        fifo.reader.try_read(buffer)
    } else {
        Ok(rustix::io::read(&fifo.reader, buffer)?)
    }
}

#[cfg(test)]
pub(super) mod tests;

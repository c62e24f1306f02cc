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
use super::{Sinks, Stdio};

/// Bytes held of one stream.
const BUFFER_BYTES: usize = 64 * 1024;

/// The guest's ends of the streams that are not null.
#[derive(Debug, Default)]
pub struct GuestStreams {
    /// Host to guest.
    pub stdin: Option<UnixStream>,
    /// Guest to host.
    pub stdout: Option<UnixStream>,
    /// Guest to host.
    pub stderr: Option<UnixStream>,
}

/// The copies of one instance, running.
#[derive(Debug)]
pub struct Pumps {
    stdin: Option<AbortHandle>,
    stdin_phase: watch::Sender<StdinPhase>,
    program_ended: watch::Sender<bool>,
    outputs: JoinSet<Option<File>>,
    /// Our reading ends of finished outputs: they keep in the FIFO what nobody has read yet.
    kept: Vec<File>,
    sinks: Sinks,
}

impl Pumps {
    /// Starts to copy each FIFO that has a stream.
    #[must_use]
    pub fn start(stdio: Stdio, guest: GuestStreams) -> Self {
        let stdin_phase = watch::Sender::new(StdinPhase::Held);
        let program_ended = watch::Sender::new(false);
        let mut outputs = JoinSet::new();
        for (fifo, stream) in [(stdio.stdout, guest.stdout), (stdio.stderr, guest.stderr)] {
            if let (Some(fifo), Some(stream)) = (fifo, stream) {
                outputs.spawn(copy_output(stream, fifo, program_ended.subscribe()));
            }
        }
        let stdin = match (stdio.stdin, guest.stdin) {
            (Some(fifo), Some(stream)) => {
                let phase = stdin_phase.subscribe();
                Some(tokio::spawn(copy_input(fifo, stream, phase)).abort_handle())
            }
            _ => None,
        };
        Self {
            stdin,
            stdin_phase,
            program_ended,
            outputs,
            kept: Vec::new(),
            sinks: stdio.sinks,
        }
    }

    /// The means to begin and end standard input; it outlives a drain.
    #[must_use]
    pub fn stdin(&self) -> StdinSwitch {
        StdinSwitch(self.stdin_phase.clone())
    }

    /// After the program's end: waits until its output has been read or has nobody to read it, at most
    /// `within`, then closes the FIFOs. Whether everything was delivered.
    pub async fn drain(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        self.program_ended.send_replace(true);
        let ended = tokio::time::timeout(within, async {
            while let Some(output) = self.outputs.join_next().await {
                self.kept.extend(output.ok().flatten());
            }
        })
        .await;
        // Waits until the copies are gone, and the FIFOs with them.
        self.outputs.shutdown().await;
        self.sinks.finish(deadline).await;
        ended.is_ok()
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        if let Some(stdin) = &self.stdin {
            stdin.abort();
        }
    }
}

/// How far standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StdinPhase {
    /// Before `Start`: what the client writes stays in the FIFO.
    Held,
    /// It flows.
    Open,
    /// After `CloseIO`: what is in the FIFO is the last of it.
    Closing,
}

/// Begins and ends standard input.
#[derive(Clone, Debug)]
pub struct StdinSwitch(watch::Sender<StdinPhase>);

impl StdinSwitch {
    /// At `Start`.
    pub fn open(&self) {
        self.0.send_if_modified(|phase| {
            let held = *phase == StdinPhase::Held;
            if held {
                *phase = StdinPhase::Open;
            }
            held
        });
    }

    /// At `CloseIO`, any number of times.
    pub fn close(&self) {
        self.0.send_replace(StdinPhase::Closing);
    }
}

async fn copy_output(
    mut guest: UnixStream,
    mut fifo: OutputFifo,
    mut program_ended: watch::Receiver<bool>,
) -> Option<File> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = match guest.read(&mut buffer).await {
            Ok(0) => break,
            Ok(bytes) => bytes,
            // The VM is gone; what it had sent has been read.
            Err(error) => {
                tracing::debug!(stream = fifo.stream, %error, "stream broken");
                break;
            }
        };
        if let Err(error) = write_all(&mut fifo, &buffer[..bytes], &mut program_ended).await {
            tracing::debug!(stream = fifo.stream, %error, "output dropped");
            break;
        }
    }
    fifo.reader
}

/// Waits for the reader as long as the program lives. After its end a full FIFO that only we hold
/// open has no reader to wait for: without our reading end the kernel says so (`EPIPE`).
async fn write_all(
    fifo: &mut OutputFifo,
    mut bytes: &[u8],
    program_ended: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match fifo.writer.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    ready = fifo.writer.writable() => ready?,
                    // An error means that nobody can tell any more: the pumps are gone.
                    _ = program_ended.wait_for(|ended| *ended), if fifo.reader.is_some() => {
                        fifo.reader = None;
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Input ends with `CloseIO`, not with a client that goes away: another may come. But `ctr` can only
/// ask for `CloseIO` once `Create` has been answered, and its input may have ended before. So nothing is
/// read until `Start`, and a FIFO that has no writer then (reading it says so) has had its last one.
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
    loop {
        match read(&fifo, &mut buffer) {
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
    }
    // Fails when the guest is gone; then there is nobody to tell.
    let _ = guest.shutdown().await;
}

/// The FIFO is empty: whether there can be more.
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

/// Without our writing end the FIFO itself is asked, whether there is a writer and what lies in it: the
/// runtime may not have noticed yet.
fn read(fifo: &InputFifo, buffer: &mut [u8]) -> io::Result<usize> {
    if fifo.writer.is_some() {
        fifo.reader.try_read(buffer)
    } else {
        Ok(rustix::io::read(&fifo.reader, buffer)?)
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
pub(super) mod tests;

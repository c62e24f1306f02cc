//! `file://`: output appended to a file.
//!
//! A disk may make a thread that opens or writes a file wait, and the runtime has one thread for
//! everything: so another thread opens the file and copies from a pipe into it, and the pump sees a pipe as
//! it sees any FIFO.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::StdioError;
use super::fifo::OutputFifo;
use crate::log::in_span;

/// How long it may take to make the directories of a log file and to open the file.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// The stack of the copying thread, bytes: the thread has one small loop.
const STACK_BYTES: usize = 128 * 1024;

/// A log file that a thread writes.
#[derive(Debug)]
pub(super) struct LogFile {
    written: oneshot::Receiver<()>,
}

impl LogFile {
    /// Opens the file, after its directories were made, and starts to copy.
    ///
    /// # Errors
    /// [`StdioError::LogFile`], naming the path.
    pub(super) async fn open(
        stream: &'static str,
        path: &Path,
    ) -> Result<(Self, OutputFifo), StdioError> {
        let started = start(stream, path.to_owned()).await;
        started.map_err(|source| StdioError::LogFile {
            stream,
            path: path.to_owned(),
            source,
        })
    }

    /// Waits, once the pipe is closed, until all output is in the file, at most `within`.
    pub(super) async fn finish(&mut self, within: Duration) {
        if tokio::time::timeout(within, &mut self.written)
            .await
            .is_err()
        {
            tracing::warn!("a log file was not written to its end in time");
        }
    }
}

async fn start(stream: &'static str, path: PathBuf) -> io::Result<(LogFile, OutputFifo)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let fifo = OutputFifo::of_pipe(stream, writer)?;
    let (tell_opened, opened) = oneshot::channel();
    let (done, written) = oneshot::channel();
    std::thread::Builder::new()
        .name("log-file".into())
        .stack_size(STACK_BYTES)
        .spawn(in_span(move || {
            let file = match create(&path) {
                Ok(file) => file,
                Err(error) => {
                    // The error is lost when the caller has given up already.
                    let _ = tell_opened.send(Err(error));
                    return;
                }
            };
            if tell_opened.send(Ok(())).is_err() {
                return;
            }
            if let Err(error) = io::copy(&mut File::from(reader), &mut &file) {
                let name = path.display().to_string();
                tracing::warn!(path = name, %error, "the rest of the output is lost");
            }
            // The send fails when the waiter has given up.
            let _ = done.send(());
        }))?;
    let opened = tokio::time::timeout(OPEN_MAX, opened).await;
    // The thread sends a result, unless it panics.
    opened?.map_err(io::Error::other)??;
    Ok((LogFile { written }, fifo))
}

/// Opens the file, after making its directories. A FIFO without a reader is refused (ENXIO): to open the
/// FIFO would wait for a reader.
fn create(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(directory)?;
    }
    let mut options = OpenOptions::new();
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    options.append(true).create(true).mode(0o644);
    let file = options.custom_flags(nonblocking).open(path)?;
    // From here on only the copying thread waits.
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

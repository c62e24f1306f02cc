//! `file://`: output appended to a file.
//!
//! A disk may make its writer wait, and the runtime has one thread for everything: so a thread copies
//! from a pipe into the file, and the pump sees a pipe as it sees any FIFO.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::StdioError;
use super::fifo::OutputFifo;

/// Of the copying thread, bytes: it has one small loop.
const STACK_BYTES: usize = 128 * 1024;

/// A file that is written.
#[derive(Debug)]
pub struct LogFile {
    written: oneshot::Receiver<()>,
}

impl LogFile {
    /// Opens the file, after its directories were made, and starts to copy.
    ///
    /// # Errors
    /// [`StdioError::LogFile`], naming the path.
    pub fn open(stream: &'static str, path: &Path) -> Result<(Self, OutputFifo), StdioError> {
        start(stream, path).map_err(|source| StdioError::LogFile {
            stream,
            path: path.to_owned(),
            source,
        })
    }

    /// Once its pipe is closed: waits until all of it is in the file, at most `within`.
    pub async fn finish(&mut self, within: Duration) {
        if tokio::time::timeout(within, &mut self.written)
            .await
            .is_err()
        {
            tracing::warn!("a log file was not written to its end in time");
        }
    }
}

fn start(stream: &'static str, path: &Path) -> io::Result<(LogFile, OutputFifo)> {
    let file = create(path)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let fifo = OutputFifo::of_pipe(stream, writer)?;
    let (done, written) = oneshot::channel();
    let name = path.display().to_string();
    std::thread::Builder::new()
        .name("log-file".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            if let Err(error) = io::copy(&mut File::from(reader), &mut &file) {
                tracing::warn!(path = name, %error, "the rest of the output is lost");
            }
            // Nobody waits any more: that is theirs to say.
            let _ = done.send(());
        })?;
    Ok((LogFile { written }, fifo))
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(directory)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).open(path)
}

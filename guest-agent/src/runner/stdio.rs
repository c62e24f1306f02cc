//! Standard streams: descriptors 0, 1 and 2 without a buffer or a thread of ours in between.
//!
//! What the program has written is written: nothing is lost when it exits or is killed. Output blocks
//! in `write(2)` while the reader is slow; input is only read when there is some, so that a program can
//! wait for input and a clock at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::batch;
use super::descriptors::{readable, until_readable, write_all};

/// Most bytes of one read or write.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// Standard input as WASI's stream.
#[derive(Debug)]
pub(super) struct Stdin;

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        io::IsTerminal::is_terminal(&rustix::stdio::stdin())
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Self)
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Self)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        if !readable() {
            until_readable().await;
        }
    }
}

#[wasmtime_wasi::async_trait]
impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 || !readable() {
            return Ok(Bytes::new());
        }
        let mut bytes = vec![0; size.min(CHUNK_BYTES_MAX)];
        match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
            Ok(0) => Err(StreamError::Closed),
            Ok(count) => {
                bytes.truncate(count);
                Ok(bytes.into())
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(Bytes::new()),
            Err(errno) => Err(StreamError::LastOperationFailed(
                io::Error::from(errno).into(),
            )),
        }
    }
}

/// Preview 3's view; nothing uses it while that is not linked.
impl AsyncRead for Stdin {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = rustix::io::read(rustix::stdio::stdin(), buffer.initialize_unfilled())?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Standard output or standard error as WASI's stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    fd: BorrowedFd<'static>,
    /// Preview 1 keeps errno; a component learns "closed", of which its libc makes `EPIPE`.
    keep_errno: bool,
}

impl Output {
    /// The stream on descriptor 1 or 2 of a core module or a component.
    #[must_use]
    pub(super) fn new(fd: BorrowedFd<'static>, component: bool) -> Self {
        Self {
            fd,
            keep_errno: !component,
        }
    }

    fn failure(self, error: io::Error) -> StreamError {
        if error.kind() == io::ErrorKind::BrokenPipe && !self.keep_errno {
            StreamError::Closed
        } else {
            StreamError::LastOperationFailed(error.into())
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        io::IsTerminal::is_terminal(&self.fd)
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(*self)
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(*self)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        batch::write(self.fd, &bytes).map_err(|error| self.failure(error))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK_BYTES_MAX)
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write(bytes)
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(write_all(self.fd, bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

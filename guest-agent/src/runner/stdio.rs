//! Standard streams: descriptors 0, 1 and 2 without a buffer or a thread of ours in between.
//!
//! What the program has written is written: nothing is lost when it exits or is killed. Output blocks
//! in `write(2)` while the reader is slow; input is only read when there is some, so that a program can
//! wait for input and a clock at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// Most bytes of one read or write.
const CHUNK_BYTES_MAX: usize = 64 << 10;

const STDIN_FD: RawFd = 0;
const STDERR_FD: RawFd = 2;

fn descriptor(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0, 1 and 2 are open from exec to exit; nothing in this process closes them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// All of `bytes`, to standard error, whatever happens.
pub fn write_stderr(bytes: &[u8]) {
    let _ = write_all(STDERR_FD, bytes);
}

/// Blocks until everything is written.
///
/// # Errors
/// `send(2)`'s; `EPIPE` when the reader is gone.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_once(descriptor(fd), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(fd)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// A stream is a socket and raises no `SIGPIPE`: that signal keeps its default action, for who sends it
/// from outside. Anything else is the null device or a terminal.
fn write_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::net::send(fd, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::NOTSOCK) => rustix::io::write(fd, bytes),
        sent => sent,
    }
}

/// Somebody made the descriptor non-blocking; it is shared, so it stays so.
fn wait_writable(fd: RawFd) -> io::Result<()> {
    let descriptor = descriptor(fd);
    let mut polled = [PollFd::new(&descriptor, PollFlags::OUT)];
    match rustix::event::poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a read would not block: bytes, end of file or an error are there.
fn readable() -> bool {
    let descriptor = descriptor(STDIN_FD);
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}

/// Standard input.
#[derive(Debug)]
pub struct Stdin;

/// Descriptor 0 for the runtime's event loop.
#[derive(Debug)]
struct Watched;

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        STDIN_FD
    }
}

/// Returns when standard input is readable.
async fn until_readable() {
    // Registered once for the process, as epoll takes a descriptor only once; any number may wait.
    static WATCHED: OnceLock<Option<AsyncFd<Watched>>> = OnceLock::new();
    let watched = WATCHED.get_or_init(|| {
        // SAFETY: descriptor 0 stays open and the same as long as the process lives.
        unsafe { AsyncFd::register_with_interest(Watched, Interest::READABLE) }.ok()
    });
    // What epoll does not take (a regular file, the null device) is always readable.
    let Some(watched) = watched else {
        return;
    };
    // Asked anew before each wait, so what came in before is not missed.
    while !readable() {
        match watched.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        io::IsTerminal::is_terminal(&descriptor(STDIN_FD))
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
        match rustix::io::read(descriptor(STDIN_FD), &mut bytes) {
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
        let count = rustix::io::read(descriptor(STDIN_FD), buffer.initialize_unfilled())?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Standard output or standard error.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    fd: RawFd,
    /// Preview 1 keeps errno; a component learns "closed", of which its libc makes `EPIPE`.
    keep_errno: bool,
}

impl Output {
    /// For descriptor 1 or 2 of a core module or a component.
    #[must_use]
    pub fn new(fd: RawFd, component: bool) -> Self {
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
        io::IsTerminal::is_terminal(&descriptor(self.fd))
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
        super::batch::write(self.fd, &bytes).map_err(|error| self.failure(error))
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

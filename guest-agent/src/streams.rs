//! Stdio streams: from an accepted connection to the descriptor of a runner.
//!
//! ```text
//! accept ──header──► unclaimed {token} ──claim (Create, Exec)──► descriptor 0, 1 or 2 of the runner
//!    │ HEADER_WAIT_MAX   │ UNCLAIMED_WAIT_MAX
//!    └──► closed         └──► closed
//! ```
//!
//! The connection itself becomes the runner's descriptor: nothing pumps bytes in between, so end of
//! file, back-pressure and a gone reader are the socket's own. Only a terminal stands between them
//! ([`crate::terminal`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::timeout;
use wasmvm_protocol::error_chain;
use wasmvm_protocol::stream::{
    STREAM_HEADER_FIXED_BYTES, StdioFd, StreamHeader, StreamHeaderError,
};

use crate::instance_id::InstanceId;
use crate::log::{self, Level};
use crate::watch::watch;

/// Connections that are open but belong to no instance yet.
pub const UNCLAIMED_MAX: usize = 32;
/// How long a connection may take to send its header.
pub const HEADER_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a stream may wait for the request that names it.
pub const UNCLAIMED_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a request may wait for a stream it names: both travel on connections of their own.
pub const CLAIM_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a request did not get its stream.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// No stream with the token came.
    #[error("stream {token} was not opened within {} s", CLAIM_WAIT_MAX.as_secs())]
    Missing {
        /// The token of the request.
        token: u64,
    },
    /// The stream is another instance's, or another descriptor's.
    #[error("stream {token} was opened as {opened:?} of {owner}, not as {wanted:?} of {wanted_by}")]
    Mismatch {
        /// The token of the request.
        token: u64,
        /// The descriptor, as the stream's header says.
        opened: StdioFd,
        /// The instance, as the stream's header says.
        owner: InstanceId,
        /// The descriptor, as the request says.
        wanted: StdioFd,
        /// The instance, as the request says.
        wanted_by: InstanceId,
    },
}

#[derive(Debug, Default)]
struct Table {
    /// Accepted connections whose header is still being read.
    opening: usize,
    /// Streams with their headers, by token.
    unclaimed: HashMap<u64, (StreamHeader, OwnedFd)>,
}

/// The streams nobody has claimed yet.
#[derive(Debug, Default)]
pub struct Streams {
    table: Mutex<Table>,
    arrived: Notify,
}

impl Streams {
    /// Accepts connections for ever.
    ///
    /// # Errors
    /// When the listener itself fails.
    pub async fn serve(self: Arc<Self>, listener: AsyncFd<OwnedFd>) -> io::Result<()> {
        loop {
            let socket = accept(&listener).await?;
            if !self.reserve() {
                log::line(Level::Warning, "too many unclaimed streams: one is refused");
                continue;
            }
            let streams = Arc::clone(&self);
            tokio::spawn(async move { streams.open(socket).await });
        }
    }

    /// Takes the stream `token`, which must be `fd` of the instance `id`; non-blocking.
    ///
    /// # Errors
    /// [`ClaimError`], after [`CLAIM_WAIT_MAX`] at the latest.
    pub async fn claim(
        &self,
        token: u64,
        id: &InstanceId,
        fd: StdioFd,
    ) -> Result<OwnedFd, ClaimError> {
        let (header, socket) = timeout(CLAIM_WAIT_MAX, self.take_when_there(token))
            .await
            .map_err(|_| ClaimError::Missing { token })?;
        let owner = InstanceId {
            task: header.task,
            exec: header.exec,
        };
        if header.fd != fd || owner != *id {
            return Err(ClaimError::Mismatch {
                token,
                opened: header.fd,
                owner,
                wanted: fd,
                wanted_by: id.clone(),
            });
        }
        Ok(socket)
    }

    async fn take_when_there(&self, token: u64) -> (StreamHeader, OwnedFd) {
        loop {
            let arrived = self.arrived.notified();
            if let Some(stream) = self.with(|table| table.unclaimed.remove(&token)) {
                return stream;
            }
            arrived.await;
        }
    }

    /// Counts one more open connection, if there is room.
    fn reserve(&self) -> bool {
        self.with(|table| {
            let room = table.opening + table.unclaimed.len() < UNCLAIMED_MAX;
            table.opening += usize::from(room);
            room
        })
    }

    /// Reads the header, keeps the stream, and drops it if nobody comes.
    async fn open(&self, socket: OwnedFd) {
        let read = timeout(HEADER_WAIT_MAX, read_header(socket)).await;
        self.with(|table| table.opening -= 1);
        let (header, socket) = match read {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return log::line(Level::Warning, &error_chain(&error)),
            Err(_) => return log::line(Level::Warning, "a stream sent no header in time"),
        };
        let token = header.token;
        let kept = self.with(|table| {
            let free = !table.unclaimed.contains_key(&token);
            if free {
                table.unclaimed.insert(token, (header, socket));
            }
            free
        });
        if !kept {
            let text = format!("a second stream with token {token} is refused");
            return log::line(Level::Warning, &text);
        }
        self.arrived.notify_waiters();
        tokio::time::sleep(UNCLAIMED_WAIT_MAX).await;
        if self.with(|table| table.unclaimed.remove(&token)).is_some() {
            log::line(Level::Warning, &format!("nobody claimed stream {token}"));
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        change(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes a listening socket usable here.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub fn listener(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    watch(socket)
}

/// Accepts a connection, non-blocking.
///
/// # Errors
/// When the listener itself fails.
pub async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let mut ready = listener.readable().await?;
        match ready.try_io(|socket| Ok(rustix::net::accept_with(socket.get_ref(), flags)?)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

async fn read_header(socket: OwnedFd) -> Result<(StreamHeader, OwnedFd), StreamHeaderError> {
    let socket = watch(socket).map_err(StreamHeaderError::Read)?;
    let mut fixed = [0; STREAM_HEADER_FIXED_BYTES];
    read_exact(&socket, &mut fixed).await?;
    let (task_len, exec_len) = StreamHeader::id_lengths(&fixed)?;
    let mut ids = vec![0; task_len + exec_len];
    read_exact(&socket, &mut ids).await?;
    let header = StreamHeader::from_parts(&fixed, &ids)?;
    Ok((header, socket.into_inner()))
}

async fn read_exact(
    socket: &AsyncFd<OwnedFd>,
    mut bytes: &mut [u8],
) -> Result<(), StreamHeaderError> {
    while !bytes.is_empty() {
        let mut ready = socket.readable().await.map_err(StreamHeaderError::Read)?;
        let Ok(read) = ready.try_io(|socket| Ok(rustix::io::read(socket.get_ref(), &mut *bytes)?))
        else {
            continue;
        };
        match read.map_err(StreamHeaderError::Read)? {
            0 => return Err(StreamHeaderError::Read(io::ErrorKind::UnexpectedEof.into())),
            count => bytes = &mut bytes[count..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn header(token: u64) -> Vec<u8> {
        StreamHeader {
            token,
            task: "web".into(),
            exec: String::new(),
            fd: StdioFd::Stdout,
        }
        .encode()
        .unwrap()
    }

    fn init() -> InstanceId {
        InstanceId {
            task: "web".into(),
            exec: String::new(),
        }
    }

    fn serve(directory: &tempfile::TempDir) -> (Arc<Streams>, impl Fn() -> UnixStream) {
        let path = directory.path().join("streams");
        let socket = UnixListener::bind(&path).unwrap();
        let streams = Arc::new(Streams::default());
        tokio::spawn(Arc::clone(&streams).serve(listener(socket.into()).unwrap()));
        (streams, move || UnixStream::connect(&path).unwrap())
    }

    #[tokio::test]
    async fn a_claim_waits_for_its_stream_and_gets_the_bytes_behind_the_header() {
        let directory = tempfile::tempdir().unwrap();
        let (streams, connect) = serve(&directory);
        let claim = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.claim(7, &init(), StdioFd::Stdout).await }
        });
        tokio::task::yield_now().await;
        let mut shim = connect();
        let mut bytes = header(7);
        bytes.extend_from_slice(b"after");
        shim.write_all(&bytes[..9]).unwrap();
        tokio::task::yield_now().await;
        shim.write_all(&bytes[9..]).unwrap();
        let mut runner = UnixStream::from(claim.await.unwrap().unwrap());
        runner.set_nonblocking(false).unwrap();
        let mut rest = [0; 5];
        runner.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"after");
    }

    #[tokio::test]
    async fn a_stream_of_another_descriptor_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (streams, connect) = serve(&directory);
        connect().write_all(&header(7)).unwrap();
        let error = streams.claim(7, &init(), StdioFd::Stdin).await.unwrap_err();
        assert!(matches!(error, ClaimError::Mismatch { .. }));
    }

    #[tokio::test]
    async fn a_stream_of_init_is_not_an_execs() {
        let directory = tempfile::tempdir().unwrap();
        let (streams, connect) = serve(&directory);
        connect().write_all(&header(7)).unwrap();
        let exec = InstanceId {
            exec: "sh".into(),
            ..init()
        };
        let error = streams
            .claim(7, &exec, StdioFd::Stdout)
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "stream 7 was opened as Stdout of task \"web\", not as Stdout of exec \"sh\" of task \"web\""
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_comes_is_named() {
        let error = Streams::default()
            .claim(9, &init(), StdioFd::Stdin)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "stream 9 was not opened within 5 s");
    }

    #[tokio::test]
    async fn unclaimed_streams_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (streams, connect) = serve(&directory);
        let mut shims: Vec<UnixStream> = (0..UNCLAIMED_MAX + 1).map(|_| connect()).collect();
        let mut refused = shims.pop().unwrap();
        refused.set_nonblocking(true).unwrap();
        let mut byte = [0];
        while let Err(error) = refused.read(&mut byte) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            tokio::task::yield_now().await;
        }
        shims[0].write_all(&header(1)).unwrap();
        assert!(streams.claim(1, &init(), StdioFd::Stdout).await.is_ok());
    }
}

//! The host's end of a connection: a stream socket, or a file that takes all the guest sends.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::backlog::Backlog;
use super::handle::{CutReason, Target};

/// The host's end, without the bytes under way.
#[derive(Debug)]
pub(super) enum Host {
    /// A stream socket, used without waiting. Readiness is remembered between edge-triggered events, so that no call
    /// is made in vain and the worker does not spin while the guest has no room.
    Stream {
        socket: OwnedFd,
        readable: bool,
        writable: bool,
    },
    /// A file, written at once; `memfd`s do not block.
    Sink {
        file: File,
        written: u64,
        bytes_max: u64,
    },
}

/// Result of reading from the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostRead {
    /// The backlog has bytes.
    Bytes,
    /// The socket has no bytes now.
    Nothing,
    /// The socket will have no more bytes.
    Ended,
}

/// Why nothing can be written to the host's end any more.
#[derive(Debug)]
pub(super) enum HostWriteError {
    /// The peer of the socket reads no more.
    Gone,
    /// The sink's stream is cut.
    Cut(CutReason),
}

impl Host {
    pub(super) fn new(target: Target) -> Self {
        match target {
            Target::Stream(socket) => Self::Stream {
                socket,
                readable: true,
                writable: true,
            },
            Target::Sink { file, bytes_max } => Self::Sink {
                file,
                written: 0,
                bytes_max,
            },
        }
    }

    /// The socket, to be waited for.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stream { socket, .. } => Some(socket.as_fd()),
            Self::Sink { .. } => None,
        }
    }

    /// Notes an edge of readiness: reading or writing is worth another try.
    pub(super) fn ready(&mut self, read: bool, write: bool) {
        if let Self::Stream {
            readable, writable, ..
        } = self
        {
            *readable |= read;
            *writable |= write;
        }
    }

    /// Fills an empty backlog. A socket whose peer closed with our bytes unread reads as ended.
    pub(super) fn read(&mut self, backlog: &mut Backlog) -> HostRead {
        let Self::Stream {
            socket, readable, ..
        } = self
        else {
            return HostRead::Nothing;
        };
        if !*readable {
            return HostRead::Nothing;
        }
        match retry_on_intr(|| backlog.fill_from(&*socket)) {
            Ok(0) => HostRead::Ended,
            Ok(_) => HostRead::Bytes,
            Err(Errno::AGAIN) => {
                *readable = false;
                HostRead::Nothing
            }
            Err(_) => HostRead::Ended,
        }
    }

    /// Writes as many of the bytes as possible without waiting; returns how many.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, HostWriteError> {
        match self {
            Self::Stream {
                socket, writable, ..
            } => write_socket(socket, writable, bytes),
            Self::Sink {
                file,
                written,
                bytes_max,
            } => {
                let total = written.saturating_add(bytes.len() as u64);
                if total > *bytes_max {
                    return Err(HostWriteError::Cut(CutReason::Overflow(*bytes_max)));
                }
                file.write_all(bytes)
                    .map_err(|err| HostWriteError::Cut(CutReason::Write(err)))?;
                *written = total;
                Ok(bytes.len())
            }
        }
    }

    /// Ends writing when the guest sends no more: the host's reader gets end of file.
    pub(super) fn end_write(&self) {
        self.shutdown(Shutdown::Write);
    }

    /// Ends reading when the guest receives no more: the host's writer gets `EPIPE`.
    pub(super) fn end_read(&self) {
        self.shutdown(Shutdown::Read);
    }

    /// Ends one direction of the socket; fails only when the peer has closed already, so the result is ignored.
    fn shutdown(&self, how: Shutdown) {
        if let Self::Stream { socket, .. } = self {
            let _ = shutdown(socket, how);
        }
    }
}

fn write_socket(
    socket: &OwnedFd,
    writable: &mut bool,
    bytes: &[u8],
) -> Result<usize, HostWriteError> {
    let mut done = 0;
    while *writable && done < bytes.len() {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| send(socket, &bytes[done..], flags)) {
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::AGAIN) => *writable = false,
            Err(_) => return Err(HostWriteError::Gone),
        }
    }
    Ok(done)
}

//! The VMM's end of the socket to its file server.
//!
//! The file server has parsed names that the guest chose, and its answers are checked as the guest's requests
//! are: an answer has a length that fits and belongs to its request; a file comes only with an answer to OPEN or
//! CREATE, and is a regular one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use virtiofsd::fuse::{EntryOut, InHeader, Opcode, OutHeader};

use crate::file_server::FileServer;
use crate::file_server::message::{self, BYTES_MAX, object};

/// Offset in CREATE's answer of the part that is OPEN's whole answer but for its header.
const CREATED_AT: usize = size_of::<OutHeader>() + size_of::<EntryOut>();

/// Why the file server can carry out no more requests.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The file server has exited, or closed its socket.
    #[error("the file server has ended")]
    Ended,
    /// The socket failed otherwise.
    #[error("cannot talk to the file server")]
    Socket(#[source] io::Error),
    /// The answer is malformed, or not one to the request.
    #[error("the file server's answer makes no sense: {0}")]
    Answer(&'static str),
}

/// A file and the number by which the guest names it.
pub(crate) type Opened = (u64, File);

/// The file server as the device sees it: requests in, checked answers out.
#[derive(Debug)]
pub(crate) struct Client {
    server: FileServer,
    answer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(server: FileServer) -> Self {
        Self {
            server,
            answer: vec![0; BYTES_MAX],
        }
    }

    /// The socket: readable between two requests only when the file server has ended.
    pub(super) fn socket(&self) -> Arc<OwnedFd> {
        self.server.socket()
    }

    /// Sends a request that has no answer.
    ///
    /// # Errors
    /// [`ClientError::Ended`], [`ClientError::Socket`].
    pub(super) fn tell(&self, request: &[u8]) -> Result<(), ClientError> {
        rustix::io::write(&self.server, request)
            .map(drop)
            .map_err(|errno| failed(errno.into()))
    }

    /// Sends a request with the given header, and waits for the answer: its bytes, and the file that was opened.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn ask(
        &mut self,
        header: &InHeader,
        request: &[u8],
    ) -> Result<(&[u8], Option<Opened>), ClientError> {
        self.tell(request)?;
        let (length, file) = message::receive(&self.server, &mut self.answer).map_err(failed)?;
        let answer = self.answer.get(..length).unwrap_or_default();
        if answer.is_empty() {
            return Err(ClientError::Ended);
        }
        let out: OutHeader = object(answer, 0).ok_or(ClientError::Answer("it has no header"))?;
        if out.len as usize != length {
            return Err(ClientError::Answer("its length is another"));
        }
        if out.unique != header.unique {
            return Err(ClientError::Answer("it belongs to another request"));
        }
        let opened = match file {
            Some(file) => Some(opened(header.opcode, answer, file)?),
            None => None,
        };
        Ok((answer, opened))
    }
}

/// The file that came with the answer, and the number that the answer gives it.
fn opened(opcode: u32, answer: &[u8], file: OwnedFd) -> Result<Opened, ClientError> {
    let at = match opcode {
        _ if opcode == Opcode::Open as u32 => size_of::<OutHeader>(),
        _ if opcode == Opcode::Create as u32 => CREATED_AT,
        _ => return Err(ClientError::Answer("a file came with it")),
    };
    let handle = object(answer, at).ok_or(ClientError::Answer("its file has no number"))?;
    let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if kind != Ok(FileType::RegularFile) {
        return Err(ClientError::Answer("its file is not a regular one"));
    }
    Ok((handle, file.into()))
}

fn failed(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
        _ => ClientError::Socket(error),
    }
}

#[cfg(test)]
mod tests;

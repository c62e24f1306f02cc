//! The VMM's end of the conversation with its file server.
//!
//! The file server has parsed names that the guest chose, and its answers are looked at as the guest's requests
//! are: an answer has a length that fits, belongs to its request, and a file comes only where one was opened, and
//! is a regular one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use virtiofsd::fuse::{EntryOut, InHeader, Opcode, OutHeader};
use vm_memory::ByteValued;

use crate::file_server::FileServer;
use crate::file_server::message::{self, BYTES_MAX};

/// Where an answer to CREATE has what an answer to OPEN begins with.
const CREATED_AT: usize = size_of::<OutHeader>() + size_of::<EntryOut>();

/// Why the file server cannot be asked any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The process is gone.
    #[error("the file server has ended")]
    Ended,
    /// The socket.
    #[error("cannot talk to the file server")]
    Socket(#[source] io::Error),
    /// What came is no answer to what was asked.
    #[error("the file server's answer makes no sense: {0}")]
    Answer(&'static str),
}

/// A file and the number by which the guest names it.
pub(crate) type Opened = (u64, File);

/// See the module's documentation.
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
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.server.as_fd()
    }

    /// Passes a request on that has no answer.
    ///
    /// # Errors
    /// [`ClientError::Ended`], [`ClientError::Socket`].
    pub(super) fn tell(&self, request: &[u8]) -> Result<(), ClientError> {
        rustix::io::write(&self.server, request)
            .map(drop)
            .map_err(|errno| failed(errno.into()))
    }

    /// Passes a request on, whose header is given, and waits for the answer: its bytes, and what was opened.
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

/// The file that came with the answer, by the number that the answer gives it.
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

/// The object at byte `at`.
pub(super) fn object<T: ByteValued + Default>(bytes: &[u8], at: usize) -> Option<T> {
    let mut object = T::default();
    let to = object.as_mut_slice();
    let from = bytes.get(at..)?.get(..to.len())?;
    to.copy_from_slice(from);
    Some(object)
}

fn failed(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
        _ => ClientError::Socket(error),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

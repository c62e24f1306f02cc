//! A single system call per `fd_write` of a core module.
//!
//! wasmtime-wasi hands a module's write to standard output on in pieces of 4 KiB (preview 2's
//! `blocking-write-and-flush` takes no more), and every piece would be a packet to the host. So while
//! one `fd_write` is under way the pieces are gathered, and written before it returns: nothing is ever
//! kept from one call to the next ([`super::fd_write`]).

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::descriptors::write_all;

/// Bytes that are gathered before they are written in any case.
const BATCH_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// The write that is under way: programs and their host calls run on one thread.
    static GATHERED: RefCell<Option<Gathered>> = const { RefCell::new(None) };
}

#[derive(Debug)]
struct Gathered {
    fd: BorrowedFd<'static>,
    bytes: Vec<u8>,
}

impl Gathered {
    fn flush(&mut self) -> io::Result<()> {
        let result = write_all(self.fd, &self.bytes);
        self.bytes.clear();
        result
    }
}

/// Writes, or gathers while an `fd_write` is under way.
///
/// # Errors
/// `write(2)`'s.
pub(super) fn write(fd: BorrowedFd<'static>, bytes: &[u8]) -> io::Result<()> {
    GATHERED.with_borrow_mut(|gathered| {
        let Some(gathered) = gathered else {
            return write_all(fd, bytes);
        };
        let another = gathered.fd.as_raw_fd() != fd.as_raw_fd();
        if another || gathered.bytes.len() + bytes.len() > BATCH_BYTES_MAX {
            gathered.flush()?;
            gathered.fd = fd;
        }
        gathered.bytes.extend_from_slice(bytes);
        Ok(())
    })
}

/// Begins to gather pieces.
pub(super) fn begin() {
    GATHERED.set(Some(Gathered {
        fd: rustix::stdio::stdout(),
        bytes: Vec::new(),
    }));
}

/// Writes the gathered pieces; from now on every piece is written at once.
///
/// # Errors
/// `write(2)`'s.
pub(super) fn finish() -> io::Result<()> {
    GATHERED
        .take()
        .map_or(Ok(()), |mut gathered| gathered.flush())
}

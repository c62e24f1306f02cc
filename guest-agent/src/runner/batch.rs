//! One system call per `fd_write` of a core module.
//!
//! wasmtime-wasi hands a module's write to standard output on in pieces of 4 KiB (preview 2's
//! `blocking-write-and-flush` takes no more), and every piece would be a packet to the host. So while
//! one `fd_write` is under way the pieces are gathered, and written before it returns: nothing is ever
//! kept from one call to the next.

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;

use wasmtime::{AsContextMut, Caller, Extern, Linker};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wiggle::GuestMemory;

use super::stdio::write_all;
use super::wasi::State;

/// What is gathered before it is written in any case, bytes.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// WASI's errno `io` (`typenames.witx`).
const ERRNO_IO: i32 = 29;
/// WASI's errno `pipe`.
const ERRNO_PIPE: i32 = 64;

thread_local! {
    /// The write that is under way: programs and their host calls run on one thread.
    static GATHERED: RefCell<Option<Gathered>> = const { RefCell::new(None) };
}

#[derive(Debug, Default)]
struct Gathered {
    fd: RawFd,
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
pub fn write(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    GATHERED.with_borrow_mut(|gathered| {
        let Some(gathered) = gathered else {
            return write_all(fd, bytes);
        };
        if gathered.fd != fd || gathered.bytes.len() + bytes.len() > BATCH_BYTES_MAX {
            gathered.flush()?;
            gathered.fd = fd;
        }
        gathered.bytes.extend_from_slice(bytes);
        Ok(())
    })
}

/// Replaces `fd_write` by one that gathers; the linker must allow shadowing.
///
/// # Errors
/// wasmtime's, when the function is not a valid one.
pub fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "fd_write",
        |caller: Caller<'_, State>, (fd, iovs, count, written): (i32, i32, i32, i32)| {
            Box::new(fd_write(caller, fd, iovs, count, written))
        },
    )?;
    Ok(())
}

async fn fd_write(
    mut caller: Caller<'_, State>,
    fd: i32,
    iovs: i32,
    count: i32,
    written: i32,
) -> wasmtime::Result<i32> {
    GATHERED.set(Some(Gathered::default()));
    let errno = call(&mut caller, fd, iovs, count, written).await;
    let flushed = GATHERED
        .take()
        .map_or(Ok(()), |mut gathered| gathered.flush());
    match (errno?, flushed) {
        (0, Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ERRNO_PIPE),
        (0, Err(_)) => Ok(ERRNO_IO),
        (errno, _) => Ok(errno),
    }
}

/// wasmtime-wasi's own `fd_write`, called as its linker would.
async fn call(
    caller: &mut Caller<'_, State>,
    fd: i32,
    iovs: i32,
    count: i32,
    written: i32,
) -> wasmtime::Result<i32> {
    let memory = caller.get_export("memory");
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (mut memory, state) = match &memory {
        Some(Extern::Memory(memory)) => {
            let (bytes, state) = memory.data_and_store_mut(&mut *caller);
            (GuestMemory::Unshared(bytes), state)
        }
        Some(Extern::SharedMemory(memory)) => {
            (GuestMemory::Shared(memory.data()), caller.data_mut())
        }
        _ => wasmtime::bail!("missing required memory export"),
    };
    let wasi = state.p1();
    wasi.set_hostcall_fuel(fuel);
    wasi_snapshot_preview1::fd_write(wasi, &mut memory, fd, iovs, count, written).await
}

//! A core module's `fd_write`: wasmtime-wasi's own, with its pieces gathered ([`super::batch`]).

use std::io;

use wasmtime::{AsContextMut, Caller, Extern, Linker};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wiggle::GuestMemory;

use super::batch;
use super::wasi::State;

/// WASI's errno `io` (`typenames.witx`).
const ERRNO_IO: i32 = 29;
/// WASI's errno `pipe` (`typenames.witx`).
const ERRNO_PIPE: i32 = 64;

/// Replaces `fd_write` by one that gathers; the linker must allow shadowing.
///
/// # Errors
/// wasmtime's, when the function is not a valid one.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
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
    batch::begin();
    let errno = call(&mut caller, fd, iovs, count, written).await;
    let flushed = batch::finish();
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

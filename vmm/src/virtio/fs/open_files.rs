//! The files that the file server has opened, for the guest to read and write.
//!
//! An open file keeps the mode that it was opened with, so the VMM can do to the file what the guest may, and
//! nothing that takes an owner or a capability. The VMM's user has no CAP_FSETID on the host, and no process in a
//! user namespace has (Linux `fs/attr.c`, `setattr_should_drop_suidgid`): each write takes a file's set-id bits
//! away, whichever user writes in the guest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtiofsd::filesystem::{Context, FileSystem, ZeroCopyReader, ZeroCopyWriter};
use virtiofsd::oslib::WritevFlags;
use virtiofsd::passthrough::PassthroughFs;

use crate::file_server::values;

/// Most bytes that one READ or WRITE request moves.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

type Handle = u64;

/// READ and WRITE, of virtiofsd's operations; all others answer ENOSYS, by the trait's default. Clones are the same
/// files.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenFiles(Arc<Mutex<BTreeMap<Handle, Arc<File>>>>);

impl OpenFiles {
    pub(super) fn insert(&self, handle: Handle, file: File) {
        self.lock().insert(handle, Arc::new(file));
    }

    pub(super) fn remove(&self, handle: Handle) {
        self.lock().remove(&handle);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn get(&self, handle: Handle) -> io::Result<Arc<File>> {
        let file = self.lock().get(&handle).cloned();
        file.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Handle, Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileSystem for OpenFiles {
    type Inode = u64;
    type Handle = Handle;
    /// No directory is read by the VMM.
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn read<W: ZeroCopyWriter>(
        &self,
        _ctx: Context,
        _inode: u64,
        handle: Handle,
        mut w: W,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let size = size.min(REQUEST_BYTES_MAX);
        values::range(offset, size)?;
        w.read_from_file_at(&*self.get(handle)?, size as usize, offset, None)
    }

    /// Writes, and appends when the request says so: the flag travels with every request, because the guest can
    /// change it by `fcntl(2)`.
    fn write<R: ZeroCopyReader>(
        &self,
        _ctx: Context,
        _inode: u64,
        handle: Handle,
        mut r: R,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        delayed_write: bool,
        _kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let size = size.min(REQUEST_BYTES_MAX);
        values::range(offset, size)?;
        let appends = !delayed_write && flags & libc::O_APPEND.cast_unsigned() != 0;
        let flags = appends.then_some(WritevFlags::RWF_APPEND);
        r.write_to_file_at(&*self.get(handle)?, size as usize, offset, flags)
    }
}

//! Mappings in the host's address space: ranges of guest RAM, and files that are slots.
#![allow(unsafe_code, reason = "mmap(2), munmap(2), madvise(2)")]

use std::ffi::c_void;
use std::fs::File;
use std::marker::PhantomData;

use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

/// A range of guest RAM, at its place in this process.
#[derive(Debug)]
pub(crate) struct RamRange<'a> {
    start: *mut c_void,
    bytes: usize,
    memory: PhantomData<&'a GuestMemoryMmap>,
}

impl<'a> RamRange<'a> {
    /// The range of `bytes` from guest-physical `address`; `None` when not all of it is in one region of RAM.
    pub(crate) fn find(memory: &'a GuestMemoryMmap, address: u64, bytes: usize) -> Option<Self> {
        let slice = memory.get_slice(GuestAddress(address), bytes).ok()?;
        Some(Self {
            start: slice.ptr_guard_mut().as_ptr().cast(),
            bytes,
            memory: PhantomData,
        })
    }

    /// Sets whether the range gets transparent huge pages.
    pub(crate) fn set_huge_pages(&self, huge_pages: bool) -> rustix::io::Result<()> {
        self.advise(if huge_pages {
            Advice::LinuxHugepage
        } else {
            Advice::LinuxNoHugepage
        })
    }

    /// Keeps the range out of core dumps.
    pub(crate) fn keep_out_of_dumps(&self) -> rustix::io::Result<()> {
        self.advise(Advice::LinuxDontDump)
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is part of a mapping of ours, and none of the three advices changes content.
        unsafe { rustix::mm::madvise(self.start, self.bytes, advice) }
    }

    /// Maps `file` from `offset` over the range, privately; range and offset must be page aligned.
    pub(crate) fn map_over(&self, file: &File, offset: u64) -> rustix::io::Result<()> {
        // SAFETY: `find` proved that the whole range belongs to one region of guest RAM, a private
        // mapping of ours that Rust sees only through volatile accesses; it is replaced by another of
        // the same size, and `GuestMemoryMmap` unmaps both with the region.
        let mapped = unsafe {
            rustix::mm::mmap(
                self.start,
                self.bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                file,
                offset,
            )
        };
        mapped.map(drop)
    }
}

/// The host's view of a file, read-only, which nothing in this process reads through.
#[derive(Debug)]
pub(crate) struct FileMapping {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the address is only a number to `munmap(2)`; nothing in this process reads through it.
unsafe impl Send for FileMapping {}

impl FileMapping {
    /// Maps the first `bytes` of `file`, shared, so that what is read is the file's.
    pub(crate) fn new(file: &File, bytes: usize) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing; nobody in
        // this process reads through it.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                0,
            )
        };
        Ok(Self {
            start: start?,
            bytes,
        })
    }

    /// Address of the mapping in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.start as u64
    }

    /// Length of the mapping, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this address and length; KVM's slot of it was deleted, or is
        // deleted with the VM, whose descriptor is dropped first, or was never made.
        let _unmapped = unsafe { rustix::mm::munmap(self.start, self.bytes) };
    }
}

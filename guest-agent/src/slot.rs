//! Mapping the slot's content through `/dev/mem` (or, in tests, through a file), and what it is to wasmtime.
#![allow(unsafe_code, reason = "memory of the host's, and compiled code in it")]

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};
use wasmvm_protocol::slot::{SLOT_HEADER_BYTES, SlotHeader, SlotHeaderError, SlotKind};

/// The error for content of another kind; the runner has looked at the kind before.
const NO_ARTIFACT: &str = "the slot holds no artifact of this kind";

/// Why the slot's content cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The kernel maps nothing there.
    #[error("cannot map {bytes} bytes of the slot at {offset:#x}")]
    Map {
        /// The place in the device, bytes from its start.
        offset: u64,
        /// Length of the mapping, bytes.
        bytes: usize,
        /// The error of `mmap(2)`.
        #[source]
        source: io::Error,
    },
    /// Nothing valid lies in the slot.
    #[error("the slot holds no valid header")]
    Header(#[source] SlotHeaderError),
    /// A header that promises nothing.
    #[error("the slot's content is empty")]
    Empty,
}

/// A mapping that lives as long as the process; nobody can write it.
#[derive(Debug)]
pub struct SlotContent {
    /// The header, which says what the content is.
    pub header: SlotHeader,
    start: NonNull<u8>,
}

impl SlotContent {
    /// Maps the slot that starts at `offset` of `device`; executable if the content is to run.
    ///
    /// # Errors
    /// [`SlotError`], naming offset and length.
    pub fn map(device: impl AsFd, offset: u64, executable: bool) -> Result<Self, SlotError> {
        let device = device.as_fd();
        let page = map(device, offset, SLOT_HEADER_BYTES, ProtFlags::READ)?;
        // SAFETY: `page` is a readable mapping of SLOT_HEADER_BYTES that nobody writes.
        let bytes = unsafe { std::slice::from_raw_parts(page.as_ptr(), SLOT_HEADER_BYTES) };
        let header = SlotHeader::decode(bytes);
        // SAFETY: mapped above with this length; `bytes` is not used any more.
        let _ = unsafe { rustix::mm::munmap(page.as_ptr().cast(), SLOT_HEADER_BYTES) };
        let header = header.map_err(SlotError::Header)?;
        let length = usize::try_from(header.content_bytes).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(SlotError::Empty);
        }
        let protection = if executable {
            ProtFlags::READ | ProtFlags::EXEC
        } else {
            ProtFlags::READ
        };
        let content = offset + SLOT_HEADER_BYTES as u64;
        let start = map(device, content, length, protection)?;
        Ok(Self { header, start })
    }

    /// The content as the core module that it was compiled from; its code stays where it is.
    ///
    /// # Errors
    /// wasmtime's, when another version made it or for another processor; or when it is something else.
    pub fn module(&self, engine: &Engine) -> wasmtime::Result<Module> {
        wasmtime::ensure!(self.header.kind == SlotKind::CoreArtifact, NO_ARTIFACT);
        // SAFETY: the content was made by this version's compiler in a VM of its own and is mapped,
        // unchanging, as long as the process lives.
        unsafe { Module::deserialize_raw(engine, self.memory()) }
    }

    /// The content as the component that it was compiled from; its code stays where it is.
    ///
    /// # Errors
    /// wasmtime's, when another version made it or for another processor; or when it is something else.
    pub fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        wasmtime::ensure!(self.header.kind == SlotKind::ComponentArtifact, NO_ARTIFACT);
        // SAFETY: as above.
        unsafe { Component::deserialize_raw(engine, self.memory()) }
    }

    fn memory(&self) -> NonNull<[u8]> {
        NonNull::slice_from_raw_parts(self.start, self.length())
    }

    /// The content as bytes.
    #[must_use]
    pub fn bytes(&self) -> &'static [u8] {
        // SAFETY: mapped readable with this length in `map`, never unmapped; the host's file behind
        // it is sealed or replaced by rename only, so it never changes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length()) }
    }

    fn length(&self) -> usize {
        usize::try_from(self.header.content_bytes).unwrap_or(usize::MAX)
    }
}

fn map(
    device: impl AsFd,
    offset: u64,
    bytes: usize,
    protection: ProtFlags,
) -> Result<NonNull<u8>, SlotError> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let start = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            bytes,
            protection,
            MapFlags::SHARED,
            device,
            offset,
        )
    }
    .map_err(|errno| SlotError::Map {
        offset,
        bytes,
        source: errno.into(),
    })?;
    NonNull::new(start.cast()).ok_or(SlotError::Map {
        offset,
        bytes,
        source: io::ErrorKind::OutOfMemory.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(parts: &[&[u8]]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        for part in parts {
            file.write_all(part).unwrap();
        }
        file
    }

    #[test]
    fn content_follows_the_header_page() {
        let header = SlotHeader {
            kind: SlotKind::Wasm,
            content_bytes: 5,
            sha256: [0; 32],
        };
        let mut page = header.encode().to_vec();
        page.resize(SLOT_HEADER_BYTES, 0);
        let slot = SlotContent::map(file(&[&page, b"hello"]), 0, false).unwrap();
        assert_eq!(slot.bytes(), b"hello");
        assert_eq!(slot.header, header);
    }

    #[test]
    fn an_unmapped_slot_is_an_error() {
        let error = SlotContent::map(file(&[&[0xff; SLOT_HEADER_BYTES]]), 0, false).unwrap_err();
        assert!(matches!(
            error,
            SlotError::Header(SlotHeaderError::Magic(_))
        ));
    }
}

//! Guest memory in the type that the file server's library reads and writes.
//!
//! `virtiofsd` only takes guest memory that can log dirtied pages (for live migration). The log is
//! never switched on here; but the type has to match, so regions of that type are laid over the machine's.
#![allow(unsafe_code, reason = "a second view of mapped memory")]

use std::fmt;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// The same guest memory twice: for the queues, and for the file server.
pub(super) struct MemoryView {
    server: GuestMemoryMmap<BitmapMmapRegion>,
    /// Keeps the mappings that `server` points to.
    queues: GuestMemoryMmap,
}

impl fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryView").field(&self.queues).finish()
    }
}

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    /// A region that the library does not take.
    #[error("the file server cannot use a region of guest memory")]
    Region(#[source] MmapRegionError),
    /// A region that wraps round the address space.
    #[error("the file server cannot use guest memory at {0:#x}")]
    Address(u64),
    /// The library's regions overlap.
    #[error("the file server cannot use the guest's memory")]
    Regions(#[source] FromRangesError),
}

impl MemoryView {
    pub(super) fn new(queues: GuestMemoryMmap) -> Result<Self, ViewError> {
        let regions = queues.iter().map(over).collect::<Result<Vec<_>, _>>()?;
        let server =
            GuestMemoryMmap::from_regions(regions).map_err(|err| ViewError::Regions(err.into()))?;
        Ok(Self { server, queues })
    }

    pub(super) fn queues(&self) -> &GuestMemoryMmap {
        &self.queues
    }

    pub(super) fn server(&self) -> &GuestMemoryMmap<BitmapMmapRegion> {
        &self.server
    }
}

fn over(region: &GuestRegionMmap) -> Result<GuestRegionMmap<BitmapMmapRegion>, ViewError> {
    let builder = MmapRegionBuilder::new(region.size())
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags());
    // SAFETY: the pointer and the size are those of a mapping that `MemoryView::queues` keeps alive;
    // a region made of a raw pointer does not unmap it.
    let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
    let mapping = builder.build().map_err(ViewError::Region)?;
    let start = region.start_addr();
    GuestRegionMmap::new(mapping, start).ok_or(ViewError::Address(start.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn both_views_show_the_same_bytes() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x10_0000), 0x2000)];
        let view = MemoryView::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()).unwrap();
        let at = GuestAddress(0x10_1ff0);
        view.server().write_obj(0x1234_5678_u32, at).unwrap();
        assert_eq!(view.queues().read_obj::<u32>(at).unwrap(), 0x1234_5678);
        view.queues().write_obj(7_u8, GuestAddress(3)).unwrap();
        assert_eq!(view.server().read_obj::<u8>(GuestAddress(3)).unwrap(), 7);
    }
}

//! Set-id bits are cleared when a user without `CAP_FSETID` in the guest changes a file.
//!
//! The kernel clears the bits for a thread that lacks the capability itself, so the capability is dropped for the
//! length of the call (`FUSE_HANDLE_KILLPRIV_V2`, Linux `include/uapi/linux/fuse.h`). The library's own way uses
//! libcap-ng, which opens `/proc/TID/status`: a path in the tenant's tree, here.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Guard: this thread has no effective `CAP_FSETID` until the guard is dropped.
#[derive(Debug)]
pub(super) struct WithoutFsetid {
    before: CapabilitySets,
}

impl WithoutFsetid {
    /// Drops the capability; `None`, with nothing changed, when `wanted` is false.
    pub(super) fn when(wanted: bool) -> io::Result<Option<Self>> {
        if !wanted {
            return Ok(None);
        }
        let before = capabilities(None)?;
        let without = CapabilitySets {
            effective: before.effective.difference(CapabilitySet::FSETID),
            ..before
        };
        set_capabilities(None, without)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        // The capability stayed permitted, so this cannot fail; if it does, less is allowed, not more.
        if let Err(errno) = set_capabilities(None, self.before) {
            log::error!("virtio-fs: cannot take CAP_FSETID back: {errno}");
        }
    }
}

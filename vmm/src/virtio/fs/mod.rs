//! The file system device (virtio 1.2 §5.11): one tree of the host, served by FUSE requests.
//!
//! ```text
//! driver ──request queue──┐
//!        ──hiprio queue───┤ worker ──► request ──► virtiofsd's Server ──► tree ──► PassthroughFs
//!        ◄─interrupt──────┘ one thread, poll       (decodes FUSE)     (allow-list)   (system calls)
//! ```
//!
//! The file server itself is the library `virtiofsd`: decision page 001 says why. Ours are the queues
//! and [`Tree`], which lets through what a WASI program needs and nothing else.
//!
//! Nothing is cached in the guest: pods share volumes between VMs, so that what one writes the other
//! must see at once; and pages cached in the guest would be charged to the task, whose guest kernel
//! does not know the limit. One thread serves both queues: a guest has one vCPU, and a request that
//! waits for the host's disk delays only its own VM.

mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod request;
mod set_id;
mod tree;
mod values;
mod view;
mod worker;

#[cfg(test)]
mod tests;

pub use device::FsDevice;
pub use tree::{REQUEST_BYTES_MAX, Tree};

/// The name by which the guest mounts the tree.
pub const TAG: &str = "root";
/// Sizes of the high priority and the request queue. Linux limits a request's pages to the size of the
/// queue (`virtio_fs.c`, `virtio_fs_get_tree`): about half a MiB.
pub const QUEUE_SIZES: [u16; 2] = [128, 128];

//! The file system device (virtio 1.2 §5.11): a tree of the host, served by FUSE requests.
//!
//! ```text
//! driver ──request queue──┐
//!        ──hiprio queue───┤ worker ──► request ──READ, WRITE──► open files      (preadv2, pwritev2)
//!        ◄─interrupt──────┘ one thread, poll  └──all else─────► client ──socket──► file server
//! ```
//!
//! The library that decodes READ and WRITE here, and other requests in the file server, is `virtiofsd`: decision
//! page 001 says why. The process that opens files is [`crate::file_server`].
//!
//! Nothing is cached in the guest: pods share volumes between VMs, so that every VM must see another's write
//! at once; and pages cached in the guest would be charged to the task, whose guest kernel
//! does not know the limit. One thread serves both queues: a guest has one vCPU, and a request that
//! waits for the host's disk delays only its own VM.

mod client;
mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod open_files;
mod request;
mod view;
mod worker;

#[cfg(test)]
mod tests;

#[cfg(feature = "fuzzing")]
pub(crate) use client::Client;
pub use device::FsDevice;
pub use open_files::REQUEST_BYTES_MAX;

/// The name by which the guest mounts the tree.
pub const TAG: &str = "root";
/// Sizes of the high priority and the request queue. Linux limits a request's pages to the size of the
/// queue (`virtio_fs.c`, `virtio_fs_get_tree`): about half a MiB.
pub const QUEUE_SIZES: [u16; 2] = [128, 128];

/// The tree below `root`, of which a guest may hold `guest_fds` descriptors.
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
pub(crate) fn tree_for_test(root: &std::path::Path, guest_fds: u64) -> crate::file_server::Tree {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let proc_self_fd = open("/proc/self/fd", flags, Mode::empty()).unwrap();
    crate::file_server::Tree::new(root, proc_self_fd, guest_fds).unwrap()
}

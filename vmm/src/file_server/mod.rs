//! The process that opens the task's files.
//!
//! The process that parses queues must not own the tree: a bug in the vsock device or in a ring would own the tree
//! with that process. So the VMM has no file of the task, no path and no capability, and its user owns nothing on
//! the host. The file server is a child of the VMM, in the same namespaces and the same cgroup, and serves what the
//! VMM passes on (decision page 008 has the measurements).
//!
//! ```text
//! guest ──queues──► VMM, thread "fs"                       nobody's user, no capability, no path
//!                     │ READ and WRITE on files that were handed to it
//!                     │
//!                     │ socket pair, SOCK_SEQPACKET: a FUSE message ──►
//!                     │           ◄── its answer, with the file that OPEN or CREATE has opened
//!                     ▼
//!                   file server                            the user and the file capabilities of the spec
//!                     tree ──► PassthroughFs of virtiofsd   root = the tree, Landlock, a list of system calls
//! ```
//!
//! READ and WRITE are [`crate::virtio::fs`]'s. One request is under way at a time. Every message has one answer, but
//! for FORGET and BATCH_FORGET (`message::is_answered`). Files go one way: the VMM cannot send a descriptor.
//!
//! # The ends
//!
//! The VMM is PID 1 of the namespace, so the kernel ends the file server with the VMM and before any process is
//! notified of the VMM's exit: no mount is left when the shim sees the exit. When the file server exits, the
//! VMM reads the end of the socket and ends the VM.
//!
//! Numbers here are the guest's, as in [`crate::virtio`]: none is added or multiplied unchecked.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod letterbox;
pub(crate) mod message;
mod process;
mod serve;
mod set_id;
mod tree;
pub(crate) mod values;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

pub use process::{StartError, Starting, start};
pub use tree::Tree;

/// The VMM's end of the socket to its file server.
#[derive(Debug)]
pub struct FileServer {
    socket: Arc<OwnedFd>,
}

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
impl FileServer {
    /// Serves `tree` on a thread of this process.
    pub(crate) fn on_a_thread(tree: Tree) -> Self {
        Self::on_a_thread_that(tree, || ())
    }

    /// Serves `tree` on a thread of this process, after `first`.
    pub(crate) fn on_a_thread_that(tree: Tree, first: impl FnOnce() + Send + 'static) -> Self {
        let (socket, server) = pair().unwrap();
        std::thread::spawn(move || serve::serve_apart(&server, &tree, first));
        Self::new(socket)
    }

    /// A file server that the holder of the second descriptor plays.
    pub(crate) fn played() -> (Self, OwnedFd) {
        let (socket, other) = pair().unwrap();
        (Self::new(socket), other)
    }
}

impl FileServer {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
        }
    }

    /// The socket, to be waited for apart from its use.
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }
}

impl AsFd for FileServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The VMM's end of a new socket, and the file server's. The buffers hold one packet of any allowed length.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    for end in [&pair.0, &pair.1] {
        sockopt::set_socket_send_buffer_size(end, 2 * message::BYTES_MAX)?;
    }
    Ok(pair)
}

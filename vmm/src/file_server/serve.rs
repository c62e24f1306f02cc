//! The file server's loop: a message, the library's work, the answer.

use std::io;
use std::os::fd::AsFd;

use virtiofsd::fuse::{InHeader, OutHeader};
use virtiofsd::server::Server;
use vm_memory::ByteValued;

use super::Tree;
use super::letterbox::Letterbox;
use super::message::{self, bare_answer, is_answered, object};

/// Serves `tree` until the VMM's end of the socket is closed.
///
/// # Errors
/// The socket's, and the letterbox's.
pub(super) fn serve(socket: impl AsFd, tree: &Tree) -> io::Result<()> {
    let server = Server::new(tree.clone());
    let mut letterbox = Letterbox::new()?;
    while let Some(message) = letterbox.take_in(&socket)? {
        let length = message.len();
        let header: InHeader = object(message, 0).unwrap_or_default();
        let (reader, writer) = letterbox.open(length)?;
        let written = server.handle_message(reader, writer, None::<&mut ()>);
        let opened = tree.take_opened();
        if !is_answered(header.opcode) {
            continue;
        }
        let bare = match written {
            Ok(written) if written >= size_of::<OutHeader>() => {
                let answer = letterbox.answer(written)?;
                message::send(&socket, answer, opened.as_ref().map(AsFd::as_fd))?;
                continue;
            }
            // The library writes no answer to DESTROY.
            Ok(_) => 0,
            Err(error) => {
                log::warn!("file server: {error}");
                -libc::EIO
            }
        };
        message::send(&socket, bare_answer(header.unique, bare).as_slice(), None)?;
    }
    Ok(())
}

/// Serves on a thread among others: the library changes the working directory and the umask of its thread.
#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    unsafe_code,
    reason = "a test's thread leaves what it shares with others"
)]
pub(super) fn serve_apart(socket: &std::os::fd::OwnedFd, tree: &Tree, first: impl FnOnce()) {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only the file system attributes are unshared, which this thread alone uses from now on.
    let served = unsafe { unshare_unsafe(UnshareFlags::FS) }
        .map_err(io::Error::from)
        .and_then(|()| {
            first();
            serve(socket, tree)
        });
    if let Err(error) = served {
        log::warn!("file server: {error}");
    }
}

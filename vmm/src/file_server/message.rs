//! Messages between VMM and file server: each is a packet, and some answers have a file beside the packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use virtiofsd::fuse::{Opcode, OutHeader};
use vm_memory::ByteValued;

/// Longest message, bytes, either way. The longest that Linux sends is a SYMLINK with two names of 4096 bytes; a
/// READDIR is cut to what fits.
pub(crate) const BYTES_MAX: usize = 32 * 1024;

/// Bytes of an answer's header.
pub(crate) const HEADER_BYTES: u32 = 16;
const _: () = assert!(size_of::<OutHeader>() == HEADER_BYTES as usize);

/// Operations that the file server carries out. READ and WRITE are the VMM's own; neither carries out the others:
/// extended attributes and ACLs, locks (the guest's kernel keeps its own), ioctl, poll, bmap, copies within the
/// host, `syncfs`, which would reach beyond the tree, and `flush`, a round trip for every `close` without a use
/// where nothing is cached.
const SERVED: &[Opcode] = &[
    Opcode::Init,
    Opcode::Destroy,
    Opcode::Lookup,
    Opcode::Forget,
    Opcode::BatchForget,
    Opcode::Getattr,
    Opcode::Setattr,
    Opcode::Readlink,
    Opcode::Symlink,
    Opcode::Mknod,
    Opcode::Mkdir,
    Opcode::Unlink,
    Opcode::Rmdir,
    Opcode::Rename,
    Opcode::Rename2,
    Opcode::Link,
    Opcode::Open,
    Opcode::Create,
    Opcode::Release,
    Opcode::Fsync,
    Opcode::Fallocate,
    Opcode::Lseek,
    Opcode::Statfs,
    Opcode::Opendir,
    Opcode::Readdir,
    Opcode::Releasedir,
    Opcode::Fsyncdir,
];

/// Whether the file server carries out requests of this kind.
pub(crate) fn is_served(opcode: u32) -> bool {
    SERVED.iter().any(|served| *served as u32 == opcode)
}

/// Whether a request of this kind has an answer (Linux `include/uapi/linux/fuse.h`: "no reply").
pub(crate) fn is_answered(opcode: u32) -> bool {
    opcode != Opcode::Forget as u32 && opcode != Opcode::BatchForget as u32
}

/// An answer of a header alone. `error` is 0 or a negative errno.
pub(crate) fn bare_answer(unique: u64, error: i32) -> OutHeader {
    OutHeader {
        len: HEADER_BYTES,
        error,
        unique,
    }
}

/// The object at byte `at`.
pub(crate) fn object<T: ByteValued + Default>(bytes: &[u8], at: usize) -> Option<T> {
    let mut object = T::default();
    let to = object.as_mut_slice();
    let from = bytes.get(at..)?.get(..to.len())?;
    to.copy_from_slice(from);
    Some(object)
}

/// Sends one packet, with a file beside it or without.
///
/// # Errors
/// `sendmsg(2)`'s; `EPIPE` when the other end is closed.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one packet; returns its length, 0 when the other end is closed, and the file beside the packet.
///
/// # Errors
/// `recvmsg(2)`'s; `InvalidData` for a packet that is longer than `bytes` or has more than one file beside it.
pub(crate) fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let parts = &mut [IoSliceMut::new(bytes)];
        rustix::net::recvmsg(&socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let file = files.next().and_then(|mut files| files.next());
    drop(files);
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if received.flags.intersects(cut) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received.bytes, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;

    #[test]
    fn a_packet_arrives_whole_with_its_file() {
        let (one, other) = super::super::pair().unwrap();
        let mut bytes = vec![0; BYTES_MAX];
        send(&one, &vec![7; BYTES_MAX], None).unwrap();
        let (length, file) = receive(&other, &mut bytes).unwrap();
        assert_eq!(
            (length, file.is_none(), bytes[BYTES_MAX - 1]),
            (BYTES_MAX, true, 7)
        );

        let sent = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(sent.path(), "roses").unwrap();
        let opened = File::open(sent.path()).unwrap();
        send(&one, b"x", Some(opened.as_fd())).unwrap();
        let (length, file) = receive(&other, &mut bytes).unwrap();
        let mut text = String::new();
        File::from(file.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((length, text.as_str()), (1, "roses"));

        send(&one, &[0; 9], None).unwrap();
        let error = receive(&other, &mut bytes[..8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(one);
        assert_eq!(receive(&other, &mut bytes).unwrap().0, 0);
        let error = send(&other, b"x", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

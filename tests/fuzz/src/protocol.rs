//! What crosses the borders: control messages, slot and stream headers.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use arbitrary::{Result, Unstructured};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use wasmvm_protocol::control::{self, CONTROL_FDS_MAX, FromVmm};
use wasmvm_protocol::slot::{SLOT_CONTENT_BYTES_MAX, SlotHeader};
use wasmvm_protocol::stream::{ID_BYTES_MAX, StreamHeader};

/// A message from the VMM, with or without descriptors, is one of ours or an error, and leaves no
/// descriptor open.
pub(crate) fn control(input: &[u8]) {
    let _used_up = receive(&mut Unstructured::new(input));
}

fn receive(u: &mut Unstructured<'_>) -> Result<()> {
    let (shim, vmm) = control::pair().unwrap();
    let file = memfd_create("passed", MemfdFlags::CLOEXEC).unwrap();
    let before = descriptors();
    let passed = vec![file.as_fd(); u.int_in_range(0..=CONTROL_FDS_MAX + 1)?];
    let message = u.peek_bytes(u.len()).unwrap_or_default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_FDS_MAX + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
    }
    let message = [IoSlice::new(message)];
    sendmsg(&vmm, &message, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    // Whatever it is; one that is sent again is the same.
    if let Ok(Some((message, fds))) = control::recv::<FromVmm>(&shim) {
        drop(fds);
        let sent = control::send(&vmm, &message, &[]);
        if sent.is_ok() {
            let again = control::recv::<FromVmm>(&shim).unwrap().unwrap();
            assert_eq!(again.0, message);
        }
    }
    assert_eq!(descriptors(), before, "a descriptor was kept");
    Ok(())
}

/// The lowest free descriptor: higher, when one was kept.
fn descriptors() -> i32 {
    use std::os::fd::AsRawFd as _;
    memfd_create("probe", MemfdFlags::CLOEXEC)
        .unwrap()
        .as_raw_fd()
}

/// A slot's header is what it is encoded from, or an error.
pub(crate) fn slot(input: &[u8]) {
    if let Ok(header) = SlotHeader::decode(input) {
        assert!(header.content_bytes <= SLOT_CONTENT_BYTES_MAX);
        assert_eq!(SlotHeader::decode(&header.encode()).unwrap(), header);
    }
}

/// A stream's header has ids of the lengths that its fixed part says, and is what it is encoded from.
pub(crate) fn stream(input: &[u8]) {
    let Some((fixed, rest)) = input.split_first_chunk() else {
        return;
    };
    let Ok((task_len, exec_len)) = StreamHeader::id_lengths(fixed) else {
        assert!(StreamHeader::from_parts(fixed, rest).is_err());
        return;
    };
    assert!((1..=ID_BYTES_MAX).contains(&task_len) && exec_len <= ID_BYTES_MAX);
    let ids = rest.get(..task_len + exec_len).unwrap_or(rest);
    if let Ok(header) = StreamHeader::from_parts(fixed, ids) {
        assert_eq!((header.task.len(), header.exec.len()), (task_len, exec_len));
        let bytes = header.encode().unwrap();
        let (fixed, ids) = bytes.split_first_chunk().unwrap();
        assert_eq!(StreamHeader::from_parts(fixed, ids).unwrap(), header);
        let cut = StreamHeader::from_parts(fixed, &ids[..ids.len() - 1]).unwrap_err();
        assert!(cut.to_string().contains("stream header"), "{cut}");
    }
}

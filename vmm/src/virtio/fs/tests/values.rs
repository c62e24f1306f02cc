//! Numbers that Linux's driver never sends: offsets behind every file, descriptors longer than what is
//! asked for, flags that are on no list.

use std::fs::{self, File};
use std::io::Read;

use virtiofsd::fuse::{Opcode, ROOT_ID, ReadIn, WriteIn};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::confined::Field::{Long, Short};
use super::confined::{bytes, setattr_size};
use super::{
    ANSWER, ANSWER_BYTES, Guest, NEXT, QUEUE_SIZES, REQUEST, USED, WRITABLE, c_string, header, tree,
};
use crate::virtio::fs::REQUEST_BYTES_MAX;

const BEHIND_ALL: [u64; 3] = [1 << 63, i64::MAX.unsigned_abs(), u64::MAX];
/// Linux `include/uapi/linux/fs.h`.
const RENAME_WHITEOUT: u32 = 1 << 2;

#[test]
fn an_offset_behind_every_file_is_an_error_of_that_request() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let node = guest.lookup(ROOT_ID, "poem").unwrap().nodeid;
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    for offset in BEHIND_ALL {
        assert_eq!(guest.read(node, fh, offset, 8).0, libc::EINVAL);
        assert_eq!(guest.write(node, fh, offset, b"roses"), libc::EINVAL);
        let allocate = bytes(&[Long(fh), Long(offset), Long(8), Short(0), Short(0)]);
        let error = guest.call(Opcode::Fallocate, node, &allocate).0;
        assert!([libc::EINVAL, libc::EFBIG].contains(&error), "{error}");
    }
    let seek = bytes(&[Long(fh), Long(1 << 63), Short(4), Short(0)]);
    assert_eq!(guest.call(Opcode::Lseek, node, &seek).0, libc::ENXIO);
    let resize = setattr_size(1 << 63);
    assert_eq!(guest.call(Opcode::Setattr, node, &resize).0, libc::EINVAL);
    assert_eq!(guest.read(node, fh, 0, 5), (0, b"roses".to_vec()));
    assert_eq!(fs::metadata(tree.path().join("poem")).unwrap().len(), 13);
}

#[test]
fn no_more_is_read_than_was_asked_for() {
    let tree = tree();
    fs::write(tree.path().join("long"), vec![b'x'; 100_000]).unwrap();
    let mut guest = Guest::mounted(tree.path());
    let node = guest.lookup(ROOT_ID, "long").unwrap().nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    let mut behind = vec![0; 100_000];
    let answer = GuestAddress(ANSWER);
    guest.memory.write_slice(&behind, answer).unwrap();
    assert_eq!(guest.read(node, fh, 0, 1), (0, b"x".to_vec()));
    let first_behind = GuestAddress(ANSWER + 16 + 1);
    guest.memory.read_slice(&mut behind, first_behind).unwrap();
    assert!(behind.iter().all(|byte| *byte == 0));
}

#[test]
fn no_more_is_written_than_was_asked_for() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    assert_eq!(guest.create("new", libc::O_RDWR).0, 0);
    let node = guest.lookup(ROOT_ID, "new").unwrap().nodeid;
    let fh = guest.open(node, libc::O_WRONLY).unwrap().fh;
    let one_byte = WriteIn {
        fh,
        size: 1,
        ..WriteIn::default()
    };
    let body = [one_byte.as_slice(), &[b'y'; 100_000]].concat();
    assert_eq!(guest.call(Opcode::Write, node, &body).0, 0);
    assert_eq!(fs::read(tree.path().join("new")).unwrap(), b"y");
}

/// Whatever the descriptors hold and the request asks for. The answer's descriptors are all the same.
#[test]
fn a_request_moves_at_most_its_bound() {
    let tree = tree();
    let file = File::create(tree.path().join("long")).unwrap();
    file.set_len(4 << 20).unwrap();
    let mut guest = Guest::mounted(tree.path());
    let node = guest.lookup(ROOT_ID, "long").unwrap().nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap().fh;
    let all = ReadIn {
        fh,
        size: u32::MAX,
        ..ReadIn::default()
    };
    let request = [
        header(Opcode::Read as u32, node, 0, 40).as_slice(),
        all.as_slice(),
    ]
    .concat();
    guest
        .memory
        .write_slice(&request, GuestAddress(REQUEST))
        .unwrap();
    guest.descriptor(0, REQUEST, request.len() as u32, NEXT, 1);
    for index in 1..16 {
        guest.descriptor(
            index,
            ANSWER,
            ANSWER_BYTES,
            WRITABLE | NEXT,
            index as u16 + 1,
        );
    }
    guest.descriptor(16, ANSWER, ANSWER_BYTES, WRITABLE, 0);
    let slot = u64::from(guest.available % QUEUE_SIZES[1]);
    guest.offer(0);
    guest.kick().unwrap();
    let written: u32 = guest
        .memory
        .read_obj(GuestAddress(USED + 8 + 8 * slot))
        .unwrap();
    assert_eq!(written, 16 + REQUEST_BYTES_MAX);
}

/// On a file system that could: overlayfs refuses the flag itself.
#[test]
fn no_device_is_made_by_a_rename() {
    let tree = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(tree.path().join("old"), "x").unwrap();
    let mut guest = Guest::mounted(tree.path());
    let names = [c_string("old"), c_string("new")].concat();
    for flags in [RENAME_WHITEOUT, RENAME_WHITEOUT | 1] {
        let head = bytes(&[Long(ROOT_ID), Short(flags), Short(0)]);
        let error = guest
            .call(Opcode::Rename2, ROOT_ID, &[head, names.clone()].concat())
            .0;
        assert_eq!(error, libc::EINVAL, "{flags}");
    }
    let mut text = String::new();
    File::open(tree.path().join("old"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(
        (text.as_str(), fs::read_dir(tree.path()).unwrap().count()),
        ("x", 1)
    );
}

#[test]
fn what_linux_never_asks_for_is_refused() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let node = guest.lookup(ROOT_ID, "poem").unwrap().nodeid;
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    // Collapse and insert a range, unshare extents.
    for mode in [0x08, 0x20, 0x40] {
        let body = bytes(&[Long(fh), Long(0), Long(4096), Short(mode), Short(0)]);
        assert_eq!(
            guest.call(Opcode::Fallocate, node, &body).0,
            libc::EOPNOTSUPP
        );
    }
    // The server's own file position, and no position at all.
    for whence in [0, 1, 2, 5] {
        let body = bytes(&[Long(fh), Long(0), Short(whence), Short(0)]);
        assert_eq!(guest.call(Opcode::Lseek, node, &body).0, libc::EINVAL);
    }
    // Nobody would make a file as the server itself.
    guest.uid = u32::MAX;
    assert_eq!(guest.create("new", libc::O_RDWR).0, libc::EINVAL);
    assert!(!tree.path().join("new").exists());
}

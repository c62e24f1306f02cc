//! Every operation of the tree once, by two threads: one may make the file server's system calls only, the other
//! those of the device's thread. A call that is missing from a list ends the process of these tests, and is named.

use std::fs;
use std::thread;

use virtiofsd::fuse::{Opcode, ROOT_ID};

use super::super::tree_for_test;
use super::{Guest, c_string, linux_flags, tree};
use crate::file_server::FileServer;
use crate::seccomp::{Thread, apply};

/// `FATTR_MODE`, `_UID`, `_GID`, `_SIZE`, `_ATIME_NOW`, `_MTIME`, `_FH`, `_KILL_SUIDGID` (Linux
/// `include/uapi/linux/fuse.h`).
const MODE: u32 = 1 << 0;
const OWNER: u32 = 1 << 1 | 1 << 2;
const SIZE: u32 = 1 << 3;
const TIMES: u32 = 1 << 4 | 1 << 5 | 1 << 7;
const FH: u32 = 1 << 6;
const KILL_SET_ID: u32 = 1 << 11;

/// The fields of a FUSE structure one after the other, 32 or 64 bits each.
pub(super) enum Field {
    Short(u32),
    Long(u64),
}
use Field::{Long, Short};

pub(super) fn bytes(fields: &[Field]) -> Vec<u8> {
    let bytes = |field: &Field| match field {
        Short(value) => value.to_le_bytes().to_vec(),
        Long(value) => value.to_le_bytes().to_vec(),
    };
    fields.iter().flat_map(bytes).collect()
}

fn setattr(valid: u32, fh: u64) -> Vec<u8> {
    let (size, mode, mtime) = (5, 0o100_644, 1_700_000_000);
    let head = [Short(valid), Short(0), Long(fh), Long(size), Long(0)];
    let times = [Long(0), Long(mtime), Long(0), Short(0), Short(0), Short(0)];
    let rest = [Short(mode), Short(0), Short(1234), Short(1234), Short(0)];
    [bytes(&head), bytes(&times), bytes(&rest)].concat()
}

/// A request to change nothing but the size.
pub(super) fn setattr_size(size: u64) -> Vec<u8> {
    let mut body = setattr(SIZE, 0);
    body[16..24].copy_from_slice(&size.to_le_bytes());
    body
}

impl Guest {
    /// An operation that has to succeed.
    fn does(&mut self, opcode: Opcode, node: u64, fields: &[Field], names: &[&str]) {
        let names: Vec<u8> = names.iter().flat_map(|name| c_string(name)).collect();
        let body = [bytes(fields), names].concat();
        let number = opcode as u32;
        assert_eq!(self.call(opcode, node, &body).0, 0, "operation {number}");
    }
}

fn names(guest: &mut Guest) {
    let plain = [Short(0o100_644), Short(0), Short(0), Short(0)];
    guest.does(Opcode::Mknod, ROOT_ID, &plain, &["made"]);
    guest.does(Opcode::Mkdir, ROOT_ID, &[Short(0o755), Short(0)], &["sub"]);
    guest.does(Opcode::Symlink, ROOT_ID, &[], &["link", "made"]);
    let made = guest.lookup(ROOT_ID, "made").unwrap().nodeid;
    let sub = guest.lookup(ROOT_ID, "sub").unwrap().nodeid;
    let link = guest.lookup(ROOT_ID, "link").unwrap().nodeid;
    guest.does(Opcode::Readlink, link, &[], &[]);
    guest.does(Opcode::Link, sub, &[Long(made)], &["hard"]);
    let across = [Long(sub), Short(0), Short(0)];
    guest.does(Opcode::Rename2, ROOT_ID, &across, &["made", "moved"]);
    guest.does(Opcode::Statfs, sub, &[], &[]);
    let dir = guest.get::<virtiofsd::fuse::OpenOut>(Opcode::Opendir, sub, &bytes(&[Long(0)]));
    let fh = dir.unwrap().fh;
    let whole = [Long(fh), Long(0), Short(4096), Short(0), Long(0), Long(0)];
    guest.does(Opcode::Readdir, sub, &whole, &[]);
    guest.does(Opcode::Fsyncdir, sub, &[Long(fh), Long(0)], &[]);
    guest.does(Opcode::Releasedir, sub, &[Long(fh), Long(0), Long(0)], &[]);
    for name in ["hard", "moved"] {
        guest.does(Opcode::Unlink, sub, &[], &[name]);
    }
    guest.does(Opcode::Rmdir, ROOT_ID, &[], &["sub"]);
    guest.does(Opcode::Unlink, ROOT_ID, &[], &["link"]);
}

fn contents(guest: &mut Guest, name: &str) {
    let (error, _) = guest.create(name, libc::O_RDWR);
    assert_eq!(error, 0);
    let node = guest.lookup(ROOT_ID, name).unwrap().nodeid;
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    assert_eq!(guest.write(node, fh, 0, b"roses"), 0);
    assert_eq!(guest.read(node, fh, 0, 9), (0, b"roses".to_vec()));
    for valid in [MODE, SIZE, SIZE | KILL_SET_ID, TIMES] {
        guest.does_setattr(node, &setattr(valid, 0));
        guest.does_setattr(node, &setattr(valid | FH, fh));
    }
    let more = [Long(fh), Long(0), Long(9), Short(0), Short(0)];
    guest.does(Opcode::Fallocate, node, &more, &[]);
    guest.does(
        Opcode::Lseek,
        node,
        &[Long(fh), Long(0), Short(4), Short(0)],
        &[],
    );
    for data_only in [0, 1] {
        guest.does(Opcode::Fsync, node, &[Long(fh), Long(data_only)], &[]);
    }
    guest.does(Opcode::Getattr, node, &[Long(0), Long(0)], &[]);
    guest.does(Opcode::Release, node, &[Long(fh), Long(0), Long(0)], &[]);
}

impl Guest {
    fn does_setattr(&mut self, node: u64, body: &[u8]) {
        assert_eq!(self.call(Opcode::Setattr, node, body).0, 0);
    }
}

#[test]
fn file_server_and_device_keep_to_their_system_calls() {
    let tree = tree();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(tree.path(), mode).unwrap();
    let confine = || apply(Thread::FileServer).unwrap();
    let served = tree_for_test(tree.path(), 512);
    let server = FileServer::on_a_thread_that(served, confine);
    let confined = thread::spawn(move || {
        let mut guest = Guest::with_server(server);
        apply(Thread::Fs).unwrap();
        assert_eq!(guest.init(linux_flags().bits()), 0);
        for (uid, name) in [(0, "by-root"), (1234, "by-user")] {
            guest.uid = uid;
            names(&mut guest);
            contents(&mut guest, name);
        }
        guest.uid = 0;
        let node = guest.lookup(ROOT_ID, "by-root").unwrap().nodeid;
        guest.does_setattr(node, &setattr(OWNER, 0));
    });
    confined.join().unwrap();
}

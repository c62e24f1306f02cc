//! The device, driven by a queue in guest memory as Linux's driver does it. Needs root: files are made
//! with the owner who asks for them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small lengths and flags, put into the fields of FUSE"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::{
    AttrOut, CreateIn, EntryOut, InitOut, MkdirIn, Opcode, OpenIn, OpenOut, ROOT_ID, ReadIn,
    WriteIn,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::RequestServer;
use super::worker::{Worker, WorkerError};
use super::{QUEUE_SIZES, tree_for_test};
use crate::file_server::FileServer;
use crate::gate::Gate;
use crate::virtio::{Activation, ActiveQueue, Interrupt, WorkerView};

mod confined;
mod values;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x1_0000;
const ANSWER: u64 = 0x8_0000;
const ANSWER_BYTES: u32 = 0x2_0000;
const MEMORY_BYTES: usize = 0x10_0000;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

/// A guest that sends one request at a time.
struct Guest {
    memory: GuestMemoryMmap,
    worker: Worker,
    kick: EventFd,
    available: u16,
    uid: u32,
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn queue() -> Queue {
    let mut queue = Queue::new(QUEUE_SIZES[1]).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(TABLE))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAILABLE))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue
}

impl Guest {
    fn with_server(server: FileServer) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let kick = event();
        let active = |kick| ActiveQueue {
            queue: queue(),
            kick,
        };
        let activation = Activation {
            memory: memory.clone(),
            features: 0,
            queues: vec![active(event()), active(kick.try_clone().unwrap())],
            interrupt: Interrupt::new(event()),
        };
        let worker = Worker::new(RequestServer::new(server), activation).unwrap();
        Self {
            memory,
            worker,
            kick,
            available: 0,
            uid: 0,
        }
    }

    /// A guest that has mounted `root`.
    fn mounted(root: &Path) -> Self {
        let mut guest = Self::unmounted(root);
        assert_eq!(guest.init(linux_flags().bits()), 0);
        guest
    }

    fn unmounted(root: &Path) -> Self {
        Self::with_server(FileServer::on_a_thread(tree_for_test(root, 512)))
    }

    fn init(&mut self, flags: u64) -> i32 {
        self.call(Opcode::Init, 0, &init_body(flags)).0
    }

    fn descriptor(&self, index: u64, address: u64, bytes: u32, flags: u16, next: u16) {
        let at = TABLE + 16 * index;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(bytes, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % QUEUE_SIZES[1]);
        self.memory
            .write_obj(head, GuestAddress(AVAILABLE + 4 + 2 * slot))
            .unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory
            .write_obj(self.available, GuestAddress(AVAILABLE + 2))
            .unwrap();
    }

    fn kick(&mut self) -> Result<(), WorkerError> {
        self.kick.write(1).unwrap();
        self.worker.serve_queue(1)
    }

    /// Sends raw bytes; answers with what the device wrote.
    fn raw(&mut self, request: &[u8], answer_bytes: u32) -> Vec<u8> {
        self.memory
            .write_slice(request, GuestAddress(REQUEST))
            .unwrap();
        self.descriptor(0, REQUEST, request.len() as u32, NEXT, 1);
        self.descriptor(1, ANSWER, answer_bytes, WRITABLE, 0);
        self.offer(0);
        self.kick().unwrap();
        let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(used, self.available, "the request was not returned");
        let slot = u64::from(used.wrapping_sub(1) % QUEUE_SIZES[1]);
        let written: u32 = self
            .memory
            .read_obj(GuestAddress(USED + 8 + 8 * slot))
            .unwrap();
        assert!(written <= answer_bytes);
        let mut answer = vec![0; written as usize];
        self.memory
            .read_slice(&mut answer, GuestAddress(ANSWER))
            .unwrap();
        answer
    }

    /// One FUSE request; answers with the error and the body.
    fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let mut request = header(opcode as u32, node, self.uid, body.len());
        request.extend_from_slice(body);
        let answer = self.raw(&request, ANSWER_BYTES);
        assert_eq!(
            answer[8..16],
            77_u64.to_le_bytes(),
            "the answer is to another request"
        );
        let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
        (-error, answer[16..].to_vec())
    }

    fn get<T: ByteValued + Default>(
        &mut self,
        opcode: Opcode,
        node: u64,
        body: &[u8],
    ) -> Result<T, i32> {
        let (error, body) = self.call(opcode, node, body);
        if error != 0 {
            return Err(error);
        }
        let mut value = T::default();
        let bytes = value.as_mut_slice();
        let len = bytes.len();
        bytes.copy_from_slice(&body[..len]);
        Ok(value)
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.get(Opcode::Lookup, parent, &c_string(name))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<OpenOut, i32> {
        let body = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        self.get(Opcode::Open, node, body.as_slice())
    }

    fn create(&mut self, name: &str, flags: i32) -> (i32, Vec<u8>) {
        let head = CreateIn {
            flags: flags as u32,
            mode: 0o100_640,
            ..CreateIn::default()
        };
        let body = [head.as_slice(), &c_string(name)].concat();
        self.call(Opcode::Create, ROOT_ID, &body)
    }

    fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> (i32, Vec<u8>) {
        let body = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(Opcode::Read, node, body.as_slice())
    }

    fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> i32 {
        let head = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            ..WriteIn::default()
        };
        self.call(Opcode::Write, node, &[head.as_slice(), data].concat())
            .0
    }
}

/// What Linux 6.12 knows, as far as the server asks for it.
fn linux_flags() -> FsOptions {
    FsOptions::SUBMOUNTS
        | FsOptions::HANDLE_KILLPRIV_V2
        | FsOptions::INIT_EXT
        | FsOptions::CREATE_SUPP_GROUP
}

/// `struct fuse_init_in`: version 7.40, read-ahead, flags.
fn init_body(flags: u64) -> Vec<u8> {
    let low = (flags & u64::from(u32::MAX)) as u32;
    let words = [7, 40, 0x2_0000, low, (flags >> 32) as u32];
    let mut body: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    body.resize(64, 0);
    body
}

/// `struct fuse_in_header` of a request whose `unique` is 77.
fn header(opcode: u32, node: u64, uid: u32, body: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(40 + body as u32).to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&77_u64.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    for word in [uid, uid, 1, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn tree() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    // The server sets the umask of this process to 0.
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(tree.path().join("poem"), "roses are red").unwrap();
    fs::create_dir(tree.path().join("dir")).unwrap();
    tree
}

#[test]
fn a_file_is_found_opened_and_read_without_caching() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let entry = guest.lookup(ROOT_ID, "poem").unwrap();
    assert_eq!(
        (entry.attr.size, entry.entry_valid, entry.attr_valid),
        (13, 0, 0)
    );
    let open = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(open.open_flags & 1, 1, "FOPEN_DIRECT_IO");
    assert_eq!(
        guest.read(entry.nodeid, open.fh, 6, 100),
        (0, b"are red".to_vec())
    );
    assert_eq!(guest.lookup(ROOT_ID, "nothing").unwrap_err(), libc::ENOENT);
    assert_eq!(guest.read(entry.nodeid, open.fh + 1, 0, 1).0, libc::EBADF);
}

#[test]
fn what_is_written_is_on_the_host_at_once_with_its_owner() {
    let tree = tree();
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut guest = Guest::mounted(tree.path());
    guest.uid = 1234;
    let (error, body) = guest.create("new", libc::O_RDWR);
    assert_eq!(error, 0);
    let node = u64::from_le_bytes(body[..8].try_into().unwrap());
    let fh = u64::from_le_bytes(body[size_of::<EntryOut>()..][..8].try_into().unwrap());
    assert_eq!(guest.write(node, fh, 2, b"hello"), 0);
    let path = tree.path().join("new");
    assert_eq!(fs::read(&path).unwrap(), b"\0\0hello");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1234, 1234, 0o640)
    );
    let attr: AttrOut = guest.get(Opcode::Getattr, node, &[0; 16]).unwrap();
    assert_eq!(attr.attr.size, 7);
}

#[test]
fn an_unprivileged_owner_is_bound_by_permissions() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    guest.uid = 1234;
    assert_eq!(guest.create("new", libc::O_RDWR).0, libc::EACCES);
    guest.uid = 0;
    assert_eq!(guest.create("new", libc::O_RDWR).0, 0);
}

/// The VMM has no capability on the host, whoever writes in the guest.
#[test]
fn a_write_takes_set_id_bits_away() {
    let tree = tree();
    let path = tree.path().join("tool");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let mut guest = Guest::mounted(tree.path());
    let node = guest.lookup(ROOT_ID, "tool").unwrap().nodeid;
    let fh = guest.open(node, libc::O_WRONLY).unwrap().fh;
    let vmm = thread::spawn(move || {
        let nothing = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, nothing).unwrap();
        guest.write(node, fh, 0, b"y")
    });
    assert_eq!(vmm.join().unwrap(), 0);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn creating_what_exists_opens_it() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let length = || fs::metadata(tree.path().join("poem")).unwrap().len();
    assert_eq!(
        guest.create("poem", libc::O_RDWR | libc::O_EXCL).0,
        libc::EEXIST
    );
    assert_eq!((guest.create("poem", libc::O_RDWR).0, length()), (0, 13));
    assert_eq!(
        (
            guest.create("poem", libc::O_RDWR | libc::O_TRUNC).0,
            length()
        ),
        (0, 0)
    );
}

#[test]
fn only_regular_files_and_directories_are_opened() {
    let tree = tree();
    let make = |name: &str, kind| mknodat(CWD, tree.path().join(name), kind, Mode::RWXU, 0);
    make("fifo", FileType::Fifo).unwrap();
    make("socket", FileType::Socket).unwrap();
    symlink("poem", tree.path().join("link")).unwrap();
    let mut guest = Guest::mounted(tree.path());
    for name in ["fifo", "socket", "link"] {
        let node = guest.lookup(ROOT_ID, name).unwrap().nodeid;
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
            assert_eq!(guest.open(node, flags).unwrap_err(), libc::EBADF, "{name}");
        }
        assert_eq!(guest.create(name, libc::O_WRONLY).0, libc::EBADF, "{name}");
    }
}

/// Linux asks by OPENDIR for a directory.
#[test]
fn a_directory_that_is_opened_as_a_file_has_no_bytes() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let fh = guest.open(ROOT_ID, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(ROOT_ID, fh, 0, 10).0, libc::EBADF);
}

#[test]
fn names_stay_in_their_directory() {
    let tree = tree();
    let inner = tree.path().join("dir");
    symlink("/etc", inner.join("out")).unwrap();
    let mut guest = Guest::mounted(&inner);
    for name in ["..", ".", "", "../poem", "out/passwd", "/etc/passwd"] {
        assert_eq!(
            guest.lookup(ROOT_ID, name).unwrap_err(),
            libc::EINVAL,
            "{name:?}"
        );
        assert_eq!(guest.create(name, libc::O_RDWR).0, libc::EINVAL, "{name:?}");
        let head = MkdirIn {
            mode: 0o755,
            umask: 0,
        };
        let body = [head.as_slice(), &c_string(name)].concat();
        assert_eq!(
            guest.call(Opcode::Mkdir, ROOT_ID, &body).0,
            libc::EINVAL,
            "{name:?}"
        );
    }
    let link = guest.lookup(ROOT_ID, "out").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    let below = guest.lookup(link.nodeid, "passwd").unwrap_err();
    assert_eq!(below, libc::ENOTDIR);
}

#[test]
fn operations_that_are_not_allowed_are_unknown() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let node = guest.lookup(ROOT_ID, "poem").unwrap().nodeid;
    let body = [vec![0; 64], c_string("user.x")].concat();
    for opcode in [
        Opcode::Setxattr,
        Opcode::Getxattr,
        Opcode::Listxattr,
        Opcode::Ioctl,
        Opcode::Poll,
        Opcode::Syncfs,
        Opcode::CopyFileRange,
        Opcode::Setlk,
        Opcode::Flush,
        Opcode::TmpFile,
        Opcode::SetupMapping,
        Opcode::Bmap,
        Opcode::Access,
    ] {
        let mut request = header(opcode as u32, node, 0, body.len());
        request.extend_from_slice(&body);
        let answer = guest.raw(&request, ANSWER_BYTES);
        if let Some(error) = answer.get(4..8) {
            assert_eq!(error, (-libc::ENOSYS).to_le_bytes(), "{opcode:?}");
        }
    }
}

#[test]
fn a_guest_cannot_hold_more_descriptors_than_its_share() {
    let tree = tree();
    for number in 0..600 {
        fs::write(tree.path().join(number.to_string()), "").unwrap();
    }
    let mut guest = Guest::mounted(tree.path());
    let mut nodes = Vec::new();
    let error = loop {
        match guest.lookup(ROOT_ID, &nodes.len().to_string()) {
            Ok(entry) => nodes.push(entry.nodeid),
            Err(error) => break error,
        }
    };
    assert_eq!((nodes.len(), error), (511, libc::ENFILE));
    // FORGET gives one back, and has no answer.
    let mut forget = header(Opcode::Forget as u32, nodes[0], 0, 8);
    forget.extend_from_slice(&1_u64.to_le_bytes());
    assert!(guest.raw(&forget, 0).is_empty());
    guest.lookup(ROOT_ID, "poem").unwrap();
}

#[test]
fn a_driver_without_submounts_is_refused() {
    let tree = tree();
    let mut guest = Guest::unmounted(tree.path());
    assert_eq!(
        guest.init(linux_flags().difference(FsOptions::SUBMOUNTS).bits()),
        libc::EPROTO
    );
    assert_eq!(guest.lookup(ROOT_ID, "poem").unwrap_err(), libc::EBADF);
}

#[test]
fn the_answer_to_init_fits_linux() {
    let tree = tree();
    let mut guest = Guest::unmounted(tree.path());
    let flags = linux_flags().bits();
    let out: InitOut = guest.get(Opcode::Init, 0, &init_body(flags)).unwrap();
    assert_eq!((out.major, out.max_write), (7, 1 << 20));
    let answered = u64::from(out.flags) | u64::from(out.flags2) << 32;
    assert_eq!(answered & flags, flags);
}

#[test]
fn a_ring_that_lies_stops_the_device() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    guest
        .memory
        .write_obj(0x7fff_u16, GuestAddress(AVAILABLE + 2))
        .unwrap();
    assert!(matches!(
        guest.kick(),
        Err(WorkerError::Ring { queue: 1, .. })
    ));
    let mut guest = Guest::mounted(tree.path());
    guest.offer(QUEUE_SIZES[1]);
    assert!(matches!(
        guest.kick(),
        Err(WorkerError::Ring { queue: 1, .. })
    ));
}

#[test]
fn the_end_of_the_device_is_told_with_its_reason() {
    let tree = tree();
    let guest = Guest::mounted(tree.path());
    guest
        .memory
        .write_obj(0x7fff_u16, GuestAddress(AVAILABLE + 2))
        .unwrap();
    guest.kick.write(1).unwrap();
    let (sender, reason) = mpsc::channel();
    let worker = guest.worker;
    thread::spawn(move || {
        let error = worker.run(&Gate::default(), &Arc::new(event()), &WorkerView::default());
        sender.send(error.to_string()).unwrap();
    });
    assert_eq!(
        reason.recv_timeout(Duration::from_secs(20)).unwrap(),
        "the guest's queue 1 is not a valid ring"
    );
}

#[test]
fn a_request_without_room_for_an_answer_is_returned() {
    let tree = tree();
    let mut guest = Guest::mounted(tree.path());
    let body = ReadIn {
        size: 10,
        ..ReadIn::default()
    };
    let mut request = header(Opcode::Read as u32, ROOT_ID, 0, 40);
    request.extend_from_slice(body.as_slice());
    for answer_bytes in [0, 1, 15] {
        assert!(guest.raw(&request, answer_bytes).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a request says, it is returned, and the device goes on.
    #[test]
    fn any_request_is_returned(
        requests in proptest::collection::vec((
            0_u32..55,
            prop_oneof![Just(ROOT_ID), 0_u64..6, any::<u64>()],
            proptest::collection::vec(
                prop_oneof![4 => Just(0), 2 => 0_u8..8, 1 => any::<u8>()], 0..200),
            prop_oneof![Just(0_u32), 0_u32..200, Just(ANSWER_BYTES)],
            prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)],
        ), 1..12)
    ) {
        let tree = tree();
        let mut guest = Guest::mounted(tree.path());
        for (opcode, node, body, answer_bytes, length) in requests {
            let mut request = header(opcode, node, 0, body.len());
            if let Some(length) = length {
                request[..4].copy_from_slice(&length.to_le_bytes());
            }
            request.extend_from_slice(&body);
            guest.raw(&request, answer_bytes);
        }
    }

    /// Whatever the descriptors say, nothing outside of guest memory is touched.
    #[test]
    fn any_descriptors_are_survived(
        table in proptest::collection::vec(
            (prop_oneof![Just(REQUEST), Just(ANSWER), Just(TABLE), any::<u64>()],
             prop_oneof![0_u32..4096, any::<u32>()], 0_u16..8, 0_u16..10), 8),
        heads in proptest::collection::vec(0_u16..10, 1..8),
        opcode in 0_u32..55,
    ) {
        let tree = tree();
        let mut guest = Guest::mounted(tree.path());
        guest.memory.write_slice(&header(opcode, ROOT_ID, 0, 60), GuestAddress(REQUEST)).unwrap();
        for (index, (address, bytes, flags, next)) in (0..).zip(table) {
            guest.descriptor(index, address, bytes, flags, next);
        }
        for head in heads {
            guest.offer(head);
        }
        if let Err(error) = guest.kick() {
            let of_the_ring = matches!(error, WorkerError::Ring { .. } | WorkerError::Empty(_));
            prop_assert!(of_the_ring, "{error}");
        }
    }
}

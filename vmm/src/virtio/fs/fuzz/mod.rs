//! The file server under requests that no kernel sends, and rings that no driver sets up.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

pub(crate) mod request;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use arbitrary::{Result, Unstructured};
use rustix::process::{Resource, Rlimit, getegid, geteuid, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;
use virtio_queue::QueueOwnedT;
use virtiofsd::fuse::{EntryOut, Opcode};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) use self::request::Known;
use super::request::RequestServer;
use super::view::MemoryView;
use super::worker::{Worker, WorkerError};
use super::{QUEUE_SIZES, tree_for_test};
use crate::file_server::FileServer;
use crate::virtio::fuzz::{GuestRing, NEXT, WRITE, event, near};
use crate::virtio::{Activation, ActiveQueue, Interrupt};

const MEMORY_BYTES: usize = 0x10_0000;
const RING: u64 = 0x1000;
/// The high priority queue's.
const OTHER_RING: u64 = 0x3000;
const REQUEST: u64 = 0x1_0000;
const ANSWER: u64 = 0x8_0000;
const ANSWER_BYTES: usize = 0x2_0000;
/// Bytes of `struct fuse_out_header`.
const ANSWER_HEADER_BYTES: usize = 16;
/// What lies where no answer is.
const UNTOUCHED: u8 = 0x5a;
/// As the set-up gives a task.
pub(crate) const GUEST_FDS: u64 = 64;
/// Largest file: what is asked for must not fill the host.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Most requests of one input.
const REQUESTS_MAX: usize = 64;

/// A user namespace of its own, in which this process is root over nothing else, and files of bounded size.
/// Before there is a second thread.
///
/// # Errors
/// One sentence: what the kernel refused.
#[allow(
    unsafe_code,
    reason = "the fuzz target's process is prepared before it has a second thread"
)]
pub fn prepare() -> std::result::Result<(), String> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: only user and group ids get another meaning, for this thread, which is the only one.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }
        .map_err(|errno| format!("cannot get a user namespace: {errno}"))?;
    let map = |file: &str, text: &str| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|err| format!("cannot write {file}: {err}"))
    };
    map("setgroups", "deny")?;
    map("uid_map", &format!("0 {uid} 1"))?;
    map("gid_map", &format!("0 {gid} 1"))?;
    let limit = Rlimit {
        current: Some(FILE_BYTES_MAX),
        maximum: Some(FILE_BYTES_MAX),
    };
    setrlimit(Resource::Fsize, limit).map_err(|errno| format!("cannot bound files: {errno}"))?;
    // SAFETY: no handler of ours; a file that would get too large is an error then, not a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    Ok(())
}

/// Two directories: one is served, what lies in the other is nobody's.
pub(crate) struct Host {
    base: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let host = Self { base };
        fs::create_dir(host.outside()).unwrap();
        fs::write(host.outside().join("secret"), "nobody's").unwrap();
        let tree = host.tree();
        fs::create_dir_all(tree.join("dir/inner")).unwrap();
        fs::write(tree.join("poem"), "roses are red").unwrap();
        fs::write(tree.join("dir/tool"), vec![7; 0x2_0000]).unwrap();
        symlink("../outside", tree.join("out")).unwrap();
        symlink("poem", tree.join("link")).unwrap();
        host
    }

    fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.base.path().join("tree")
    }

    fn server(&self) -> RequestServer {
        let tree = tree_for_test(&self.tree(), GUEST_FDS);
        RequestServer::new(FileServer::on_a_thread(tree))
    }

    /// Nothing outside has changed, and inside are files, directories and symlinks only.
    pub(crate) fn check(&self) {
        let outside: Vec<_> = fs::read_dir(self.outside()).unwrap().collect();
        assert_eq!(outside.len(), 1, "outside: {outside:?}");
        let secret = fs::read_to_string(self.outside().join("secret")).unwrap();
        assert_eq!(secret, "nobody's");
        assert_eq!(fs::read_dir(self.base.path()).unwrap().count(), 2);
        let _sizes = sizes(&self.tree());
    }
}

/// The bytes of every file below, by inode.
fn sizes(directory: &Path) -> HashMap<u64, u64> {
    let mut sizes = HashMap::new();
    // Whatever mode it was given, it is looked into.
    let _refused = fs::set_permissions(
        directory,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    );
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let special =
            kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket();
        assert!(!special, "{} was made: {kind:?}", path.display());
        if kind.is_dir() {
            sizes.extend(self::sizes(&path));
        } else if kind.is_file() {
            sizes.insert(metadata.ino(), metadata.len());
        }
    }
    sizes
}

/// Whatever is asked: nothing outside of the tree changes; no device, pipe or socket is made; READ and
/// WRITE move no more than they name; what is answered fits.
pub fn fuse(input: &[u8]) {
    let host = Host::new();
    let _used_up = ask(&mut Unstructured::new(input), &host);
    host.check();
}

fn ask(u: &mut Unstructured<'_>, host: &Host) -> Result<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let mut guest = Guest {
        server: host.server(),
        view: MemoryView::new(memory.clone()).unwrap(),
        memory: &memory,
        known: Known::default(),
    };
    guest.exchange(Opcode::Init as u32, &request::init(), &[ANSWER_BYTES]);
    guest.known.nodes.push(virtiofsd::fuse::ROOT_ID);
    for _ in 0..REQUESTS_MAX {
        if u.is_empty() {
            break;
        }
        guest.request(u, host)?;
    }
    Ok(())
}

struct Guest<'m> {
    server: RequestServer,
    view: MemoryView,
    memory: &'m GuestMemoryMmap,
    known: Known,
}

impl Guest<'_> {
    fn request(&mut self, u: &mut Unstructured<'_>, host: &Host) -> Result<()> {
        let (opcode, bytes) = request::any(u, &self.known)?;
        let room = match u.int_in_range(0..=7)? {
            0 => vec![u.int_in_range(0..=200)?],
            1 => vec![8, 8, 1, 0, 500, 4096],
            2 => vec![16, 1, 100_000],
            _ => vec![ANSWER_BYTES],
        };
        let moved = request::moved(opcode, &bytes);
        let before = (opcode == Opcode::Write as u32).then(|| sizes(&host.tree()));
        let answer = self.exchange(opcode, &bytes, &room);
        if opcode == Opcode::Read as u32 {
            let asked = ANSWER_HEADER_BYTES + usize::try_from(moved.1).unwrap();
            let rest = self.answer_area();
            let beyond = rest.get(asked..).unwrap_or_default();
            assert!(
                beyond.iter().all(|byte| *byte == UNTOUCHED),
                "READ of {} bytes gave more",
                moved.1
            );
        }
        if let Some(before) = before {
            for (inode, bytes) in sizes(&host.tree()) {
                let had = before.get(&inode).copied().unwrap_or(0);
                let may = had.max(moved.0.saturating_add(moved.1));
                assert!(
                    bytes <= may,
                    "WRITE of {} at {} made {had} bytes {bytes}",
                    moved.1,
                    moved.0
                );
            }
        }
        self.known.learn(opcode, &answer);
        Ok(())
    }

    /// Sends one request in descriptors as they come, with room for the answer in pieces; the answer.
    fn exchange(&mut self, opcode: u32, request: &[u8], room: &[usize]) -> Vec<u8> {
        if opcode == Opcode::Read as u32 {
            self.memory
                .write_slice(&[UNTOUCHED; ANSWER_BYTES], GuestAddress(ANSWER))
                .unwrap();
        }
        self.memory
            .write_slice(request, GuestAddress(REQUEST))
            .unwrap();
        let mut ring = GuestRing::new(self.memory, RING, QUEUE_SIZES[1]);
        // The header apart, and one byte more than a number: odd pieces.
        let cuts = [0, 40, 49, request.len()].map(|at| at.min(request.len()));
        let mut index = 0;
        for cut in cuts.windows(2) {
            let len = u32::try_from(cut[1] - cut[0]).unwrap();
            ring.describe(index, REQUEST + cut[0] as u64, len, NEXT, index + 1);
            index += 1;
        }
        let mut at = ANSWER;
        for (piece, len) in room.iter().enumerate() {
            let flags = if piece + 1 == room.len() {
                WRITE
            } else {
                WRITE | NEXT
            };
            ring.describe(index, at, u32::try_from(*len).unwrap(), flags, index + 1);
            index += 1;
            at += *len as u64;
        }
        ring.offer(0);
        let mut queue = ring.queue();
        let chain = queue.iter(self.memory).unwrap().next().unwrap();
        let written = self.server.serve(&self.view, chain).unwrap() as usize;
        assert!(written <= room.iter().sum(), "{written} bytes of answer");
        let mut answer = self.answer_area();
        answer.truncate(written);
        answer
    }

    fn answer_area(&self) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER_BYTES];
        self.memory
            .read_slice(&mut bytes, GuestAddress(ANSWER))
            .unwrap();
        bytes
    }
}

impl Known {
    /// Keeps the nodes and handles that an answer names, for later requests.
    pub(crate) fn learn(&mut self, opcode: u32, answer: &[u8]) {
        let word = |at: usize| {
            answer
                .get(at..at + 8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        };
        if answer.get(4..8) != Some(&[0; 4]) {
            return;
        }
        let entries = [
            Opcode::Lookup,
            Opcode::Mknod,
            Opcode::Mkdir,
            Opcode::Symlink,
            Opcode::Link,
            Opcode::Create,
        ];
        if entries.iter().any(|known| *known as u32 == opcode) {
            self.nodes.extend(word(ANSWER_HEADER_BYTES));
        }
        if opcode == Opcode::Open as u32 || opcode == Opcode::Opendir as u32 {
            self.handles.extend(word(ANSWER_HEADER_BYTES));
        }
        if opcode == Opcode::Create as u32 {
            self.handles
                .extend(word(ANSWER_HEADER_BYTES + size_of::<EntryOut>()));
        }
    }
}

/// Whatever the rings and descriptors say, also when answers are laid over them, each kick ends: with
/// the queue empty, or with the word that it is broken.
pub fn fs_ring(input: &[u8]) {
    let host = Host::new();
    let _used_up = kick(&mut Unstructured::new(input), &host);
}

fn kick(u: &mut Unstructured<'_>, host: &Host) -> Result<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let mut ring = GuestRing::new(&memory, RING, QUEUE_SIZES[1]);
    let other = GuestRing::new(&memory, OTHER_RING, QUEUE_SIZES[0]);
    let active = |ring: &GuestRing<'_>| ActiveQueue {
        queue: ring.queue(),
        kick: event(),
    };
    let activation = Activation {
        memory: memory.clone(),
        features: 0,
        queues: vec![active(&other), active(&ring)],
        interrupt: Interrupt::new(event()),
    };
    let mut worker = Worker::new(host.server(), activation).unwrap();
    let mut known = Known::default();
    known.nodes.extend([1, 2]);
    known.handles.push(0);
    let look_up = request::header(Opcode::Lookup as u32, 1, b"poem\0");
    let open = request::header(Opcode::Open as u32, 2, &[0; 8]);
    for (number, bytes) in (0..).zip([request::init(), look_up, open]) {
        place(&memory, &ring, number, &bytes, ANSWER);
        ring.offer(2 * number);
        worker.serve_queue(1).unwrap();
    }
    let index = ring.available() + 2;
    while !u.is_empty() {
        for number in 0..u.int_in_range(1..=6)? {
            let (_, bytes) = request::any(u, &known)?;
            // An answer's header, and behind it its first number, over the ring's index.
            let over = [ANSWER, index - 16, index, index + 2, RING, index + 0x800];
            let at = if u.arbitrary()? {
                *u.choose(&over)?
            } else {
                near(u, &over)?
            };
            place(&memory, &ring, number, &bytes, at);
            ring.offer(2 * u16::from(u.int_in_range(0..=8_u8)?));
        }
        if u.ratio(1, 4)? {
            let at = RING + u64::from(u.arbitrary::<u16>()? % 0x1800);
            memory
                .write_obj(u.arbitrary::<u16>()?, GuestAddress(at))
                .unwrap();
        }
        match worker.serve_queue(1) {
            Ok(()) => {}
            Err(WorkerError::Ring { queue: 1, .. } | WorkerError::Empty(1)) => break,
            Err(other) => panic!("{other:?}"),
        }
    }
    Ok(())
}

/// A request and the room for its answer as descriptors 2n and 2n + 1.
fn place(memory: &GuestMemoryMmap, ring: &GuestRing<'_>, number: u16, bytes: &[u8], answer: u64) {
    let at = REQUEST + 0x1000 * u64::from(number);
    memory.write_slice(bytes, GuestAddress(at)).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    ring.describe(2 * number, at, len, NEXT, 2 * number + 1);
    ring.describe(2 * number + 1, answer, 200, WRITE, 0);
}

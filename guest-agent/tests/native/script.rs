//! Preview 1 calls in a row, and what each answered: a module made for one test.

use std::fmt::Write as _;

use crate::guest::{Ended, Guest, Program};

/// WASI's errno (`typenames.witx`).
pub(crate) mod errno {
    pub(crate) const SUCCESS: u8 = 0;
    pub(crate) const ACCES: u8 = 2;
    pub(crate) const BADF: u8 = 8;
    pub(crate) const EXIST: u8 = 20;
    pub(crate) const INVAL: u8 = 28;
    pub(crate) const LOOP: u8 = 32;
    pub(crate) const NAMETOOLONG: u8 = 37;
    pub(crate) const NOENT: u8 = 44;
    pub(crate) const NOTDIR: u8 = 54;
    pub(crate) const NOTEMPTY: u8 = 55;
    pub(crate) const PERM: u8 = 63;
    pub(crate) const ROFS: u8 = 69;
    pub(crate) const XDEV: u8 = 75;
}

/// The first preopened directory.
pub(crate) const ROOT: Fd = Fd::Number(3);

/// The most bytes that one call tells.
const TOLD_BYTES_MAX: usize = 4096;
/// Where descriptors are kept, and where paths are.
const SLOTS_AT: usize = 256;
const TEXTS_AT: usize = 4096;

/// A descriptor: of a known number, or what an earlier call opened.
#[derive(Clone, Copy)]
pub(crate) enum Fd {
    Number(u32),
    Slot(usize),
}

impl Fd {
    fn wat(self) -> String {
        match self {
            Self::Number(number) => format!("(i32.const {number})"),
            Self::Slot(at) => format!("(i32.load (i32.const {at}))"),
        }
    }
}

/// `oflags` and rights of `path_open`.
#[derive(Clone, Copy)]
pub(crate) enum How {
    Read,
    Directory,
    /// Made where it is not there.
    Write,
    /// A link is not followed.
    ReadNoFollow,
}

impl How {
    /// Lookup flags, `oflags`, rights.
    fn flags(self) -> (u32, u32, u64) {
        match self {
            Self::Read => (1, 0, 1 << 1),
            Self::Directory => (1, 2, 1 << 1),
            Self::Write => (1, 1 | 8, 1 << 6),
            Self::ReadNoFollow => (0, 0, 1 << 1),
        }
    }
}

/// The module while it is written.
pub(crate) struct Script {
    interface: &'static str,
    slots: usize,
    texts: Vec<u8>,
    body: String,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::of("wasi_snapshot_preview1")
    }

    /// Of preview 0, `wasi_unstable`, too.
    pub(crate) fn of(interface: &'static str) -> Self {
        Self {
            interface,
            slots: 0,
            texts: Vec::new(),
            body: String::new(),
        }
    }

    fn text(&mut self, text: &str) -> String {
        let at = TEXTS_AT + self.texts.len();
        self.texts.extend_from_slice(text.as_bytes());
        format!("(i32.const {at}) (i32.const {})", text.len())
    }

    fn tell(&mut self, call: &str) {
        writeln!(self.body, "(call $tell {call})").unwrap();
    }

    pub(crate) fn open(&mut self, dir: Fd, path: &str, how: How) -> Fd {
        let (lookup, oflags, rights) = how.flags();
        let slot = SLOTS_AT + 4 * self.slots;
        self.slots += 1;
        let path = self.text(path);
        let dir = dir.wat();
        self.tell(&format!(
            "(call $path_open {dir} (i32.const {lookup}) {path} (i32.const {oflags}) \
             (i64.const {rights}) (i64.const {rights}) (i32.const 0) (i32.const {slot}))"
        ));
        Fd::Slot(slot)
    }

    /// Opens and reads: two answers.
    pub(crate) fn cat(&mut self, dir: Fd, path: &str) {
        let file = self.open(dir, path, How::Read);
        self.read(file);
    }

    pub(crate) fn read(&mut self, file: Fd) {
        writeln!(self.body, "(call $read {})", file.wat()).unwrap();
    }

    pub(crate) fn write(&mut self, file: Fd, text: &str) {
        let text = self.text(text);
        writeln!(self.body, "(call $write {} {text})", file.wat()).unwrap();
    }

    pub(crate) fn stat(&mut self, dir: Fd, path: &str, follow: bool) {
        let path = self.text(path);
        let (dir, follow) = (dir.wat(), u8::from(follow));
        writeln!(self.body, "(call $stat {dir} (i32.const {follow}) {path})").unwrap();
    }

    pub(crate) fn read_link(&mut self, dir: Fd, path: &str) {
        let path = self.text(path);
        writeln!(self.body, "(call $readlink {} {path})", dir.wat()).unwrap();
    }

    /// One `fd_readdir` of at most `bytes`.
    pub(crate) fn read_dir(&mut self, dir: Fd, bytes: usize, cookie: u64) {
        assert!(bytes <= TOLD_BYTES_MAX);
        let dir = dir.wat();
        writeln!(
            self.body,
            "(call $readdir {dir} (i32.const {bytes}) (i64.const {cookie}))"
        )
        .unwrap();
    }

    pub(crate) fn symlink(&mut self, target: &str, dir: Fd, path: &str) {
        let (target, path) = (self.text(target), self.text(path));
        self.tell(&format!(
            "(call $path_symlink {target} {} {path})",
            dir.wat()
        ));
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let (from, to, root) = (self.text(from), self.text(to), ROOT.wat());
        self.tell(&format!("(call $path_rename {root} {from} {root} {to})"));
    }

    pub(crate) fn link(&mut self, from: &str, to: &str) {
        let (from, to, root) = (self.text(from), self.text(to), ROOT.wat());
        self.tell(&format!(
            "(call $path_link {root} (i32.const 0) {from} {root} {to})"
        ));
    }

    pub(crate) fn mkdir(&mut self, path: &str) {
        let path = self.text(path);
        self.tell(&format!(
            "(call $path_create_directory {} {path})",
            ROOT.wat()
        ));
    }

    pub(crate) fn rmdir(&mut self, path: &str) {
        let path = self.text(path);
        self.tell(&format!(
            "(call $path_remove_directory {} {path})",
            ROOT.wat()
        ));
    }

    pub(crate) fn unlink(&mut self, dir: Fd, path: &str) {
        let path = self.text(path);
        self.tell(&format!("(call $path_unlink_file {} {path})", dir.wat()));
    }

    /// The name of a preopened directory.
    pub(crate) fn prestat(&mut self, fd: u32) {
        let fd = Fd::Number(fd).wat();
        writeln!(self.body, "(call $prestat {fd})").unwrap();
    }

    fn module(&self) -> String {
        let mut data = String::new();
        for byte in &self.texts {
            write!(data, "\\{byte:02x}").unwrap();
        }
        RUNTIME
            .replace("INTERFACE", self.interface)
            .replace("TEXTS_AT", &TEXTS_AT.to_string())
            .replace("TEXTS", &data)
            .replace("TOLD_BYTES_MAX", &TOLD_BYTES_MAX.to_string())
            .replace("BODY", &self.body)
    }

    pub(crate) async fn guest(&self) -> Guest {
        Guest::with(&self.module()).await
    }
}

/// What the calls answered, in their order.
pub(crate) struct Told {
    bytes: Vec<u8>,
    at: usize,
    pub ended: Ended,
}

impl Told {
    /// Runs the script of `guest`.
    pub(crate) async fn by(guest: &Guest, edit: impl FnOnce(&mut Program)) -> Self {
        Self::with_input(guest, edit, "").await
    }

    pub(crate) async fn with_input(
        guest: &Guest,
        edit: impl FnOnce(&mut Program),
        input: &str,
    ) -> Self {
        let ended = guest.run_with_input(edit, input.into()).await;
        assert_eq!(ended.status, 0, "{}", ended.stderr);
        // What the program itself wrote comes before.
        let mark = b"\0told\0";
        let start = ended
            .stdout_bytes
            .windows(mark.len())
            .position(|window| window == mark)
            .expect("the script came to its end");
        Self {
            bytes: ended.stdout_bytes.clone(),
            at: start + mark.len(),
            ended,
        }
    }

    pub(crate) fn errno(&mut self) -> u8 {
        self.at += 1;
        self.bytes[self.at - 1]
    }

    pub(crate) fn errnos<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.errno())
    }

    /// What a call that succeeded has told.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        assert_eq!(self.errno(), errno::SUCCESS);
        let length = usize::from(u16::from_le_bytes([
            self.bytes[self.at],
            self.bytes[self.at + 1],
        ]));
        self.at += 2 + length;
        self.bytes[self.at - length..self.at].to_vec()
    }

    pub(crate) fn text(&mut self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    /// The answers to [`Script::cat`].
    pub(crate) fn cat(&mut self) -> String {
        assert_eq!(self.errno(), errno::SUCCESS);
        self.text()
    }

    /// Device and inode number, and type, of [`Script::stat`].
    pub(crate) fn stat(&mut self) -> (u64, u64, u8) {
        let bytes = self.bytes();
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        (number(0), number(8), bytes[16])
    }

    /// Whole entries of [`Script::read_dir`]: the cookie behind each, inode number and name.
    pub(crate) fn entries(&mut self) -> Vec<(u64, u64, String)> {
        let bytes = self.bytes();
        let mut entries = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((head, after)) = rest.split_at_checked(24) {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
            let length = u32::from_le_bytes(head[16..20].try_into().unwrap()) as usize;
            let Some((name, after)) = after.split_at_checked(length) else {
                break;
            };
            let name = String::from_utf8(name.to_vec()).unwrap();
            entries.push((number(0), number(8), name));
            rest = after;
        }
        entries
    }

    pub(crate) fn assert_end(&self) {
        assert_eq!(self.at, self.bytes.len());
    }
}

/// Answers are an errno; where bytes are told with it, their number and they follow. All of it goes to
/// stdout at the end.
const RUNTIME: &str = r#"(module
  (import "INTERFACE" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "INTERFACE" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_filestat_get" (func $path_filestat_get (param i32 i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_readlink" (func $path_readlink (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_symlink" (func $path_symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_rename" (func $path_rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_link" (func $path_link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_create_directory" (func $path_create_directory (param i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_remove_directory" (func $path_remove_directory (param i32 i32 i32) (result i32)))
  (import "INTERFACE" "path_unlink_file" (func $path_unlink_file (param i32 i32 i32) (result i32)))
  (import "INTERFACE" "fd_readdir" (func $fd_readdir (param i32 i32 i32 i64 i32) (result i32)))
  (import "INTERFACE" "fd_prestat_get" (func $fd_prestat_get (param i32 i32) (result i32)))
  (import "INTERFACE" "fd_prestat_dir_name" (func $fd_prestat_dir_name (param i32 i32 i32) (result i32)))
  (memory (export "memory") 32)
  (data (i32.const 100) "\00told\00")
  (data (i32.const TEXTS_AT) "TEXTS")
  (global $start i32 (i32.const 1048576))
  (global $end (mut i32) (i32.const 1048576))
  (func $tell (param $errno i32)
    (i32.store8 (global.get $end) (local.get $errno))
    (global.set $end (i32.add (global.get $end) (i32.const 1))))
  ;; Bytes lie where they belong already: two behind the errno.
  (func $told (param $errno i32) (param $length i32)
    (call $tell (local.get $errno))
    (if (i32.eqz (local.get $errno)) (then
      (i32.store16 (global.get $end) (local.get $length))
      (global.set $end (i32.add (global.get $end) (i32.add (i32.const 2) (local.get $length)))))))
  (func $place (result i32) (i32.add (global.get $end) (i32.const 3)))
  (func $read (param $fd i32)
    (i32.store (i32.const 0) (call $place))
    (i32.store (i32.const 4) (i32.const TOLD_BYTES_MAX))
    (call $told (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))
      (i32.load (i32.const 8))))
  (func $write (param $fd i32) (param $text i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $text))
    (i32.store (i32.const 4) (local.get $length))
    (call $tell (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $stat (param $fd i32) (param $follow i32) (param $path i32) (param $length i32)
    (local $errno i32)
    (local.set $errno (call $path_filestat_get
      (local.get $fd) (local.get $follow) (local.get $path) (local.get $length) (i32.const 16)))
    (if (i32.eqz (local.get $errno))
      (then (memory.copy (call $place) (i32.const 16) (i32.const 64))))
    (call $told (local.get $errno) (i32.const 64)))
  (func $readlink (param $fd i32) (param $path i32) (param $length i32)
    (call $told (call $path_readlink (local.get $fd) (local.get $path) (local.get $length)
      (call $place) (i32.const TOLD_BYTES_MAX) (i32.const 8)) (i32.load (i32.const 8))))
  (func $readdir (param $fd i32) (param $bytes i32) (param $cookie i64)
    (call $told (call $fd_readdir (local.get $fd) (call $place) (local.get $bytes)
      (local.get $cookie) (i32.const 8)) (i32.load (i32.const 8))))
  (func $prestat (param $fd i32) (local $errno i32)
    (local.set $errno (call $fd_prestat_get (local.get $fd) (i32.const 16)))
    (if (i32.eqz (local.get $errno)) (then
      (local.set $errno (call $fd_prestat_dir_name
        (local.get $fd) (call $place) (i32.load (i32.const 20))))))
    (call $told (local.get $errno) (i32.load (i32.const 20))))
  (func (export "_start") (local $left i32)
    BODY
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 6))
    (i32.store (i32.const 8) (global.get $start))
    (i32.store (i32.const 12) (i32.sub (global.get $end) (global.get $start)))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (loop $l
      (if (i32.load (i32.const 12)) (then
        (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)))
        (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.load (i32.const 16))))
        (i32.store (i32.const 12) (i32.sub (i32.load (i32.const 12)) (i32.load (i32.const 16))))
        (br $l)))))) "#;

//! Programs in real directories, found and judged.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, SealFlags};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use wasmvm_protocol::slot::{SlotHeader, SlotKind};

use super::{Program, ProgramError, ProgramKind, SealedProgram};
use crate::bundle::TaskSpec;
use crate::cgroup::Birth;
use crate::error::{Coded as _, ErrorCode, chain};

/// An empty core module with one custom section, "name".
const CORE: &[u8] = b"\0asm\x01\0\0\0\0\x05\x04name";
/// An empty component.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A root directory with a program's environment.
struct Root {
    directory: TempDir,
    args: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
}

impl Root {
    fn new(program: &str) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            args: vec![program.to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn with(self, path: &str, content: &[u8]) -> Self {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn open(&self) -> Result<Program, ProgramError> {
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": self.args, "env": self.env, "cwd": self.cwd,
            },
            "root": {"path": "."},
        });
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        let spec = TaskSpec::load(bundle.path()).unwrap();
        let root = File::open(self.directory.path()).unwrap();
        Program::open(root.as_fd(), &spec.process)
    }

    fn refusal(&self) -> (ErrorCode, String) {
        let error = self.open().expect_err("it should have been refused");
        (error.code(), chain(&error))
    }
}

/// No cgroup: the copy is charged to the test.
fn nobody() -> Birth {
    Birth {
        unified: None,
        procs: Vec::new(),
    }
}

fn seal(program: &Program) -> Result<SealedProgram, ProgramError> {
    program.seal(&nobody(), Duration::from_secs(60))
}

/// What follows the header page of a sealed copy.
fn content(mut sealed: &File) -> Vec<u8> {
    let mut content = Vec::new();
    sealed.seek(SeekFrom::Start(4096)).unwrap();
    sealed.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn a_module_is_hashed_copied_and_sealed() {
    let root = Root::new("/bin/hello.wasm").with("bin/hello.wasm", CORE);
    let program = root.open().unwrap();
    assert_eq!(program.path, Path::new("/bin/hello.wasm"));
    assert_eq!(
        (program.kind, program.bytes),
        (ProgramKind::Core, CORE.len() as u64)
    );
    assert_eq!(program.sha256[..], Sha256::digest(CORE)[..]);
    let sealed = seal(&program).unwrap();
    assert_eq!(content(&sealed.slot), CORE);
    assert_eq!(sealed.sha256, program.sha256);
    let mut header = [0; 4096];
    sealed.slot.read_exact_at(&mut header, 0).unwrap();
    let expected = SlotHeader {
        kind: SlotKind::Wasm,
        content_bytes: CORE.len() as u64,
        sha256: program.sha256,
    };
    assert_eq!(SlotHeader::decode(&header).unwrap(), expected);
    let seals = rustix::fs::fcntl_get_seals(&sealed.slot).unwrap();
    assert!(
        seals.contains(SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)
    );
    let again = format!("/proc/self/fd/{}", sealed.slot.as_raw_fd());
    let mut writable = fs::OpenOptions::new().write(true).open(again).unwrap();
    assert!(writable.write(b"x").is_err());
    assert!(writable.set_len(0).is_err());
}

#[test]
fn a_file_that_is_swapped_is_kept_under_the_digest_of_the_copy() {
    let root = Root::new("/a").with("a", CORE);
    let program = root.open().unwrap();
    let mut other = CORE.to_vec();
    *other.last_mut().unwrap() = b'x';
    fs::write(root.at("a"), &other).unwrap();
    let sealed = seal(&program).unwrap();
    assert_eq!(content(&sealed.slot), other);
    assert_eq!(sealed.sha256[..], Sha256::digest(&other)[..]);
    assert_ne!(sealed.sha256, program.sha256);
    for (content, what) in [
        (&CORE[..12], "is truncated WebAssembly"),
        (b"", "is an empty file"),
        (b"#!/bin/sh", "is a script for"),
    ] {
        fs::write(root.at("a"), content).unwrap();
        let error = seal(&program).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    let file = fs::OpenOptions::new().write(true).open(root.at("a"));
    file.unwrap().set_len((256 << 20) + 1).unwrap();
    assert!(matches!(
        seal(&program).unwrap_err(),
        ProgramError::TooLarge { .. }
    ));
}

#[test]
fn starts_that_wait_hold_no_memory_of_their_programs_size() {
    const BYTES: u64 = 4 << 20;
    let root = Root::new("/a").with("a", b"\0asm\x01\0\0\0\0\xf3\xff\xff\x01");
    let file = fs::OpenOptions::new().write(true).open(root.at("a"));
    file.unwrap().set_len(BYTES).unwrap();
    // Other tests of this process have memory files of other lengths.
    let copies = || {
        let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let lengths = files.filter_map(|file| {
            let link = fs::read_link(file.path()).ok()?;
            let is_memory = link.to_str()?.starts_with("/memfd:");
            is_memory.then(|| fs::metadata(file.path()).map_or(0, |metadata| metadata.len()))
        });
        lengths
            .filter(|length| (BYTES..=BYTES + 4096).contains(length))
            .count()
    };
    let waiting: Vec<_> = (0..4).map(|_| root.open().unwrap()).collect();
    assert_eq!(copies(), 0);
    let _sealed = seal(&waiting[0]).unwrap();
    assert!(copies() > 0, "the copy is seen here");
}

#[test]
fn a_component_is_told_by_its_layer() {
    let root = Root::new("/a").with("a", COMPONENT);
    assert_eq!(root.open().unwrap().kind, ProgramKind::Component);
}

#[test]
fn a_name_without_a_slash_is_looked_up_by_path() {
    let mut root = Root::new("tool")
        .with("opt/b/tool", CORE)
        .with("usr/bin/tool", COMPONENT);
    assert_eq!(root.open().unwrap().path, Path::new("/usr/bin/tool"));
    root.env = vec!["PATH=/opt/a:/opt/b:/usr/bin".to_owned()];
    assert_eq!(root.open().unwrap().path, Path::new("/opt/b/tool"));
    // A directory of that name hides nothing.
    fs::create_dir_all(root.at("opt/a/tool")).unwrap();
    assert_eq!(root.open().unwrap().path, Path::new("/opt/b/tool"));
    root.cwd = "/opt".into();
    root.env = vec!["PATH=b".to_owned()];
    assert_eq!(root.open().unwrap().path, Path::new("/opt/b/tool"));
}

#[test]
fn a_bare_name_that_path_lacks_is_found_in_the_working_directory() {
    let mut root = Root::new("app.wasm").with("srv/app.wasm", CORE);
    assert_eq!(root.refusal().0, ErrorCode::NotFound);
    root.cwd = "/srv".into();
    assert_eq!(root.open().unwrap().path, Path::new("/srv/app.wasm"));
    // What PATH has comes first.
    let root = root.with("bin/app.wasm", COMPONENT);
    assert_eq!(root.open().unwrap().path, Path::new("/bin/app.wasm"));
    let root = Root::new("app.wasm").with("app.wasm", CORE);
    assert_eq!(root.open().unwrap().path, Path::new("/app.wasm"));
}

#[test]
fn a_function_is_named_behind_the_file() {
    let entered = |root: &Root| {
        let program = root.open().unwrap();
        (program.path, program.found.function)
    };
    let is = |path: &str, function: &str| (path.into(), Some(function.to_owned()));
    let root = Root::new("/app.wasm#run").with("app.wasm", CORE);
    assert_eq!(entered(&root), is("/app.wasm", "run"));
    // In PATH and the working directory too; names of functions may have any character.
    let mut root = Root::new("app.wasm#a/b").with("bin/app.wasm", CORE);
    assert_eq!(entered(&root), is("/bin/app.wasm", "a/b"));
    root.args = vec!["app.wasm#".to_owned()];
    assert_eq!(entered(&root), ("/bin/app.wasm".into(), None));
    let long = "f".repeat(1000);
    root.args = vec![format!("app.wasm#{long}")];
    assert_eq!(entered(&root), is("/bin/app.wasm", &long));
    // A file of the whole name is the file, and the longest name that there is.
    let root = Root::new("/a#b#c")
        .with("a", CORE)
        .with("a#b", CORE)
        .with("a#b#c", CORE);
    assert_eq!(entered(&root), ("/a#b#c".into(), None));
    fs::remove_file(root.at("a#b#c")).unwrap();
    assert_eq!(entered(&root), is("/a#b", "c"));
    fs::remove_file(root.at("a#b")).unwrap();
    assert_eq!(entered(&root), is("/a", "b#c"));
}

#[test]
fn a_function_of_nothing_and_of_a_component_is_refused() {
    let text = "program \"/a#b\" not found in the rootfs; looked for /a#b, /a".to_owned();
    assert_eq!(Root::new("/a#b").refusal(), (ErrorCode::NotFound, text));
    assert_eq!(Root::new("#b").refusal().0, ErrorCode::NotFound);
    // Not even when it would be many, or too long for a file.
    let many = format!("/a{}", "#".repeat(10_000));
    assert_eq!(Root::new(&many).refusal().0, ErrorCode::NotFound);
    let (code, text) = Root::new("/a#b").with("a", COMPONENT).refusal();
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert!(
        text.contains("/a is a component") && text.contains("`#b`"),
        "{text}"
    );
}

#[test]
fn home_is_the_trees_word_and_nobody_elses() {
    let home = |root: &Root| root.open().unwrap().found.home;
    let is = |home: &str| Some(home.to_owned());
    let mut root = Root::new("/a").with("a", CORE);
    assert_eq!(home(&root), is("/"));
    root = root.with("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    assert_eq!(home(&root), is("/root"));
    root.env = vec!["HOME=".to_owned()];
    assert_eq!(home(&root), is("/root"), "an empty one is none");
    root.env = vec!["HOME=/own".to_owned()];
    assert_eq!(home(&root), None);
    root.env.clear();

    // Links end inside the tree; what is no regular file is not read, and never waited for.
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "root:x:0:0::/outside:\n").unwrap();
    let passwd = root.at("etc/passwd");
    for target in [
        outside.path(),
        Path::new("/proc/self/environ"),
        Path::new("passwd"),
    ] {
        fs::remove_file(&passwd).unwrap();
        symlink(target, &passwd).unwrap();
        assert_eq!(home(&root), is("/"), "{}", target.display());
    }
    fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(CWD, &passwd, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(home(&root), is("/"));
    fs::remove_file(&passwd).unwrap();
    fs::create_dir(&passwd).unwrap();
    assert_eq!(home(&root), is("/"));
}

#[test]
fn a_name_with_a_slash_is_taken_from_the_working_directory() {
    let mut root = Root::new("./tool").with("srv/tool", CORE);
    root.cwd = "/srv".into();
    assert_eq!(root.open().unwrap().path, Path::new("/srv/./tool"));
}

#[test]
fn symlinks_are_followed_inside_the_root() {
    let root = Root::new("/bin/tool").with("lib/multi.wasm", CORE);
    fs::create_dir(root.at("bin")).unwrap();
    symlink("/lib/multi.wasm", root.at("bin/tool")).unwrap();
    assert_eq!(root.open().unwrap().kind, ProgramKind::Core);

    let root = Root::new("/tool");
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), CORE).unwrap();
    symlink(outside.path(), root.at("tool")).unwrap();
    assert_eq!(root.refusal().0, ErrorCode::NotFound);
    fs::remove_file(root.at("tool")).unwrap();
    symlink("/proc/self/exe", root.at("tool")).unwrap();
    assert_eq!(root.refusal().0, ErrorCode::NotFound);
    fs::remove_file(root.at("tool")).unwrap();
    symlink("tool", root.at("tool")).unwrap();
    let (code, text) = root.refusal();
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert!(text.contains("Too many levels of symbolic links"), "{text}");
}

#[test]
fn what_is_not_there_is_named_with_where_it_was_looked_for() {
    let mut root = Root::new("tool");
    root.env = vec!["PATH=/bin:/opt".to_owned()];
    let text = "program \"tool\" not found in the rootfs; looked for /bin/tool, /opt/tool, /tool";
    assert_eq!(root.refusal(), (ErrorCode::NotFound, text.to_owned()));
    let text = "program \"/a.wasm\" not found in the rootfs; looked for /a.wasm";
    assert_eq!(
        Root::new("/a.wasm").refusal(),
        (ErrorCode::NotFound, text.to_owned())
    );
    let (code, _) = Root::new("/file/a.wasm").with("file", CORE).refusal();
    assert_eq!(code, ErrorCode::NotFound);
}

#[test]
fn every_other_kind_of_file_is_called_by_its_name() {
    let elf = fs::read("/proc/self/exe").unwrap();
    let mut cwasm = b"\x7fELF\x02\x01\x01".to_vec();
    cwasm.extend([200; 57]);
    let endless = b"\0asm\x01\0\0\0\0\xff\xff\xff\xff\xff";
    for (content, what) in [
        (&b""[..], "is an empty file"),
        (
            &elf[..4096],
            "is an ELF program; wasmvm runs WebAssembly only: compile it for wasm32-wasip1, or run it by another",
        ),
        (
            &cwasm,
            "is a precompiled wasmtime file; wasmvm compiles WebAssembly itself",
        ),
        (
            b"#!/bin/sh\necho hello\n",
            "is a script for /bin/sh; wasmvm runs WebAssembly only",
        ),
        (
            b"#! /usr/bin/env \x1b[31m",
            r"is a script for /usr/bin/env \u{1b}[31m; wasmvm",
        ),
        (
            b"(module)",
            "is WebAssembly in text form; compile it to a binary first",
        ),
        (
            b"PK\x03\x04",
            "is no WebAssembly (it starts with 50 4b 03 04); wasmvm runs WebAssembly only",
        ),
        (
            b"\0",
            "is truncated WebAssembly: it ends after 1 of 8 header bytes",
        ),
        (
            b"\0asm\x01\0",
            "is truncated WebAssembly: it ends after 6 of 8 header bytes",
        ),
        (
            b"\0asm\x02\0\0\0",
            "is a WebAssembly module of binary version 2; version 1 is supported",
        ),
        (
            b"\0asm\x0c\0\x01\0",
            "is a WebAssembly component of binary version 12; version 13",
        ),
        (
            b"\0asm\x01\0\x07\0",
            "is WebAssembly of an unknown kind (version 1, layer 7)",
        ),
        (
            &CORE[..12],
            "is truncated WebAssembly: section 0 ends at byte 15, the file at 12",
        ),
        (
            &CORE[..9],
            "is truncated WebAssembly: section 0 at byte 8 is cut off",
        ),
        (
            b"\0asm\x01\0\0\0\0\x80\x80",
            "is truncated WebAssembly: section 0 at byte 8 is cut off",
        ),
    ] {
        let (code, text) = Root::new("/a").with("a", content).refusal();
        assert_eq!(code, ErrorCode::InvalidArgument);
        assert!(text.starts_with(&format!("program /a {what}")), "{text}");
    }
    let (_, text) = Root::new("/sbin/tini").with("sbin/tini", &elf).refusal();
    assert!(text.contains("WebAssembly only: drop --init"), "{text}");
    // Malformed, but complete: the compiler says how.
    assert!(Root::new("/a").with("a", endless).open().is_ok());
}

#[test]
fn what_is_no_regular_file_is_never_waited_for() {
    let root = Root::new("/a");
    fs::create_dir(root.at("a")).unwrap();
    let text = "program /a is a directory".to_owned();
    assert_eq!(root.refusal(), (ErrorCode::InvalidArgument, text));
    fs::remove_dir(root.at("a")).unwrap();
    rustix::fs::mknodat(CWD, root.at("a"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let text = "program /a is a FIFO".to_owned();
    assert_eq!(root.refusal(), (ErrorCode::InvalidArgument, text));
}

#[test]
fn a_program_too_large_to_compile_is_refused_before_it_is_read() {
    let root = Root::new("/a").with("a", CORE);
    fs::OpenOptions::new()
        .write(true)
        .open(root.at("a"))
        .unwrap()
        .set_len((256 << 20) + 1)
        .unwrap();
    let text = "program /a has 268435457 bytes; at most 268435456 are supported".to_owned();
    assert_eq!(root.refusal(), (ErrorCode::InvalidArgument, text));
}

proptest! {
    #[test]
    fn any_bytes_are_judged(mut content in prop::collection::vec(any::<u8>(), 0..64), wasm: bool) {
        if wasm {
            content.splice(..0, CORE[..8].iter().copied());
        }
        let root = Root::new("/a").with("a", &content);
        match root.open() {
            Ok(program) => prop_assert_eq!(program.bytes, content.len() as u64),
            Err(error) => prop_assert_eq!(error.code(), ErrorCode::InvalidArgument),
        }
    }
}

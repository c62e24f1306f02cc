//! A file that its tenant changes while it is copied.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary::{Result, Unstructured};
use sha2::{Digest as _, Sha256};
use wasmvm_protocol::slot::SLOT_HEADER_USED_BYTES;

use super::*;

/// A core module's beginning (WebAssembly specification, "Modules").
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// Most that one copy is given.
const LIMIT: Duration = Duration::from_secs(5);

/// What is copied is sealed: it has the length and the digest that its header names, and is changed by
/// nobody any more. Where nobody changes the file meanwhile it is the file.
pub fn seal(input: &[u8]) {
    let _used_up = copy_it(&mut Unstructured::new(input));
}

fn copy_it(u: &mut Unstructured<'_>) -> Result<()> {
    let changing: bool = u.arbitrary()?;
    let repeated = u.int_in_range(0..=600_usize)?;
    let start: &[u8] = if u.arbitrary()? { MODULE } else { &[] };
    let rest = u.bytes(u.len())?;
    let content = [start, &rest.repeat(repeated)].concat();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&content).unwrap();
    let source = File::open(file.path()).unwrap();
    let over = Arc::new(AtomicBool::new(!changing));
    let tenant = std::thread::spawn({
        let (over, path, content) = (Arc::clone(&over), file.path().to_owned(), content.clone());
        move || change(&path, &content, &over)
    });
    let cgroup = Birth {
        unified: None,
        procs: Vec::new(),
    };
    let found = digest(&source, Path::new("/app.wasm"));
    let sealed = copy(&source, Path::new("/app.wasm"), &cgroup, LIMIT);
    over.store(true, Ordering::Relaxed);
    tenant.join().unwrap();
    let bytes = content.len() as u64;
    let is_program = format::classify(&source, Path::new("/app.wasm"), 0, bytes).is_ok();
    assert!(
        changing || sealed.is_ok() == is_program,
        "a program: {is_program}; {sealed:?}"
    );
    let Ok(SealedProgram { mut slot, sha256 }) = sealed else {
        return Ok(());
    };
    let mut whole = Vec::new();
    slot.read_to_end(&mut whole).unwrap();
    let (page, copied) = whole.split_at(SLOT_HEADER_BYTES);
    let header = SlotHeader::decode(&page[..SLOT_HEADER_USED_BYTES]).unwrap();
    assert_eq!((header.kind, header.sha256), (SlotKind::Wasm, sha256));
    assert_eq!(header.content_bytes, copied.len() as u64);
    assert_eq!(sha256, <[u8; 32]>::from(Sha256::digest(copied)));
    if !changing {
        assert!(copied == content && found.unwrap() == (sha256, bytes));
    }
    let again = format!("/proc/self/fd/{}", slot.as_raw_fd());
    let written = fs::OpenOptions::new().write(true).open(again);
    assert!(written.is_err() || written.unwrap().write_all_at(b"x", 0).is_err());
    Ok(())
}

/// Writes, cuts and lengthens the file without end.
fn change(path: &Path, content: &[u8], over: &AtomicBool) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    while !over.load(Ordering::Relaxed) {
        file.set_len(content.len() as u64 / 2).unwrap();
        file.write_all_at(&[0xff; 64], content.len() as u64)
            .unwrap();
        file.write_all_at(content, 0).unwrap();
    }
}

//! Files that are, or are not, programs.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::io::Write as _;

use rustix::fs::{MemfdFlags, memfd_create};

use super::*;

/// Longest sentence about a file, bytes: its first line is quoted, escaped.
const SENTENCE_BYTES_MAX: usize = 1024;

/// What a file is said to be is one short line; the walk over its sections ends, wherever the file does
/// and whatever length it was said to have; a number is read as its definition has it.
pub fn program(input: &[u8]) {
    let (claimed, content) = input.split_first_chunk().unwrap_or((&[0; 8], input));
    let claimed = u64::from_le_bytes(*claimed);
    let head = &content[..content.len().min(HEAD_BYTES)];
    match kind(head, Path::new("/a")) {
        Ok(_) => assert!(head.starts_with(WASM_MAGIC)),
        Err(what) => is_a_sentence(&what),
    }
    let mut file = File::from(memfd_create("program", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    let length = content.len() as u64;
    // As it is, as it may have been before it was cut, as it may be when it has grown.
    for bytes in [length, claimed, claimed % (length + 1)] {
        if let Some(what) = cut_off(&file, 0, bytes).unwrap() {
            is_a_sentence(&what);
        }
    }
    number(content);
}

fn is_a_sentence(what: &str) {
    assert!(what.len() <= SENTENCE_BYTES_MAX, "{} bytes", what.len());
    assert!(!what.chars().any(char::is_control), "{what:?}");
}

fn number(bytes: &[u8]) {
    let Some((value, len)) = leb128(bytes) else {
        return;
    };
    let len = usize::try_from(len).unwrap();
    assert!((1..=5).contains(&len) && len <= bytes.len());
    let groups = bytes[..len].iter().rev();
    let model = groups.fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    assert_eq!(u64::from(value), model);
    assert!(bytes[..len - 1].iter().all(|byte| byte & 0x80 != 0) && bytes[len - 1] & 0x80 == 0);
}

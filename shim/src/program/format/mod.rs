//! The format of a file by its first bytes, and whether the file is complete.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{ProgramError, ProgramKind};

/// Bytes that are read of a file to find its format.
const HEAD_BYTES: usize = 64;
/// First bytes of every WebAssembly binary.
const WASM_MAGIC: &[u8; 4] = b"\0asm";
/// Length of a WebAssembly header: magic and version, four bytes each.
const WASM_HEADER_BYTES: usize = 8;
/// Sections walked to find a cut-off end; the compiler judges the rest.
const SECTIONS_MAX: usize = 10_000;
/// `EI_OSABI` of wasmtime's artifacts (`wasmtime_environ::obj`).
const ELFOSABI_WASMTIME: u8 = 200;
/// Names of the init programs that clients put before the program for the option `--init`.
const INITS: [&str; 6] = [
    "catatonit",
    "docker-init",
    "dumb-init",
    "podman-init",
    "tini",
    "tini-static",
];

/// The kind of program by the first bytes of a file; enough to refuse a file that was never meant to be WebAssembly.
pub(super) fn probe_format(file: &File, path: &Path) -> Result<ProgramKind, ProgramError> {
    glance_at(file, path, 0)
}

fn glance_at(file: &File, path: &Path, start: u64) -> Result<ProgramKind, ProgramError> {
    let mut head = [0; HEAD_BYTES];
    let len = read_at(file, &mut head, start).map_err(|source| ProgramError::Read {
        path: path.to_owned(),
        source,
    })?;
    kind(&head[..len], path).map_err(|what| not_wasm(path, what))
}

/// The kind of a program of `bytes` bytes that begins at byte `start` of the file.
pub(super) fn classify(
    file: &File,
    path: &Path,
    start: u64,
    bytes: u64,
) -> Result<ProgramKind, ProgramError> {
    let kind = glance_at(file, path, start)?;
    let cut_off = cut_off(file, start, bytes).map_err(|source| ProgramError::Copy {
        path: path.to_owned(),
        source,
    })?;
    match cut_off {
        None => Ok(kind),
        Some(what) => Err(not_wasm(path, what)),
    }
}

/// The error for a file that is something else; `what` is a verb phrase.
pub(super) fn not_wasm(path: &Path, what: String) -> ProgramError {
    ProgramError::NotWasm {
        path: path.to_owned(),
        what,
    }
}

/// By the WebAssembly core specification §5.5.16 and the component model's `Binary.md`: four bytes
/// magic, two bytes version, two bytes layer.
fn kind(head: &[u8], path: &Path) -> Result<ProgramKind, String> {
    if !head.starts_with(WASM_MAGIC) {
        return Err(describe(head, path));
    }
    let Some([v0, v1, l0, l1]) = head.get(4..WASM_HEADER_BYTES) else {
        return Err(truncated_header(head.len()));
    };
    match (
        u16::from_le_bytes([*v0, *v1]),
        u16::from_le_bytes([*l0, *l1]),
    ) {
        (1, 0) => Ok(ProgramKind::Core),
        (0xd, 1) => Ok(ProgramKind::Component),
        (version, 0) => Err(format!(
            "is a WebAssembly module of binary version {version}; version 1 is supported"
        )),
        (version, 1) => Err(format!(
            "is a WebAssembly component of binary version {version}; version 13 is supported"
        )),
        (version, layer) => Err(format!(
            "is WebAssembly of an unknown kind (version {version}, layer {layer})"
        )),
    }
}

fn truncated_header(bytes: usize) -> String {
    format!("is truncated WebAssembly: it ends after {bytes} of {WASM_HEADER_BYTES} header bytes")
}

/// Says what a file is that does not start with the magic.
fn describe(head: &[u8], path: &Path) -> String {
    const ONLY: &str = "wasmvm runs WebAssembly only";
    if head.is_empty() {
        return "is an empty file".to_owned();
    }
    if WASM_MAGIC.starts_with(head) {
        return truncated_header(head.len());
    }
    if head.starts_with(b"\x7fELF") {
        return if head.get(7) == Some(&ELFOSABI_WASMTIME) {
            "is a precompiled wasmtime file; wasmvm compiles WebAssembly itself".to_owned()
        } else {
            format!("is an ELF program; {ONLY}: {}", instead_of_elf(path))
        };
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let interpreter = String::from_utf8_lossy(line)
            .trim()
            .escape_default()
            .to_string();
        return format!("is a script for {interpreter}; {ONLY}");
    }
    let text = head.trim_ascii_start();
    if text.starts_with(b"(module") || text.starts_with(b"(component") {
        return "is WebAssembly in text form; compile it to a binary first".to_owned();
    }
    let first: Vec<_> = head
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "is no WebAssembly (it starts with {}); {ONLY}",
        first.join(" ")
    )
}

/// The advice for the user of a native program, as the end of a sentence.
fn instead_of_elf(path: &Path) -> &'static str {
    let name = path.file_name().unwrap_or_default();
    if INITS.iter().any(|init| name == *init) {
        "drop --init, as the agent of the VM is the init that reaps"
    } else {
        "compile it for wasm32-wasip1, or run it by another runtime (a native sidecar in a pod of its own, as \
         a RuntimeClass is the whole pod's)"
    }
}

/// Walks the sections: one byte id, the length in LEB128, content. Core modules and components alike.
fn cut_off(file: &File, origin: u64, bytes: u64) -> io::Result<Option<String>> {
    let mut at = WASM_HEADER_BYTES as u64;
    for section in 0..SECTIONS_MAX {
        if at >= bytes {
            break;
        }
        let mut start = [0; 6];
        let len = read_at(file, &mut start, origin + at)?;
        // A file that has become shorter than it was said to be has no byte here.
        let Some((length, length_bytes)) = leb128(start.get(1..len).unwrap_or_default()) else {
            let what =
                format!("is truncated WebAssembly: section {section} at byte {at} is cut off");
            // With all five bytes there it is malformed, and the compiler says how.
            return Ok((len < start.len()).then_some(what));
        };
        let end = at + 1 + length_bytes + u64::from(length);
        if end > bytes {
            return Ok(Some(format!(
                "is truncated WebAssembly: section {section} ends at byte {end}, the file at {bytes}"
            )));
        }
        at = end;
    }
    Ok(None)
}

/// An unsigned 32-bit number and how many bytes it takes.
fn leb128(bytes: &[u8]) -> Option<(u32, u64)> {
    let mut value: u64 = 0;
    for (i, byte) in (0u32..5).zip(bytes) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((u32::try_from(value).ok()?, u64::from(i) + 1));
        }
    }
    None
}

/// As much as there is.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    Ok(len)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;

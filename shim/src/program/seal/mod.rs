//! The program's digest, to look up what was compiled from it, and the copy that nobody can change, to
//! compile.
//!
//! The file belongs to a tenant, who may change it at any time. The digest of the file is a guess which
//! artifact fits; what is compiled, and under whose digest the result is kept, is the sealed copy. The
//! copy is as large as the tenant wants, up to [`PROGRAM_BYTES_MAX`], so it is made under a turn only, by
//! a process in the compiler's cgroup, which its pages are charged to.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::SealFlags;
use wasmvm_protocol::slot::{SLOT_HEADER_BYTES, SlotHeader, SlotKind};

use super::{ProgramError, format};
use crate::cgroup::Birth;
use crate::memory_file::memory_file;
use crate::sha256::digest_of_rest;
use crate::sys::copy::{CopyRequest, copy_in_cgroup};

/// Largest program, bytes: its artifact, 2 to 4 times as large, has to fit into the slot
/// (`wasmvm_protocol::slot::SLOT_CONTENT_BYTES_MAX`).
pub(super) const PROGRAM_BYTES_MAX: u64 = 256 << 20;

/// A copy that no tenant can change any more, as the compiler's VM maps it: header page, content.
#[derive(Debug)]
pub(crate) struct SealedProgram {
    /// The memory file with header page and content, opened read-only.
    pub slot: File,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// The digest and length of what a regular file holds now.
pub(super) fn digest(source: &File, path: &Path) -> Result<([u8; 32], u64), ProgramError> {
    let (sha256, bytes) = hash(source).map_err(|source| ProgramError::Read {
        path: path.to_owned(),
        source,
    })?;
    if bytes > PROGRAM_BYTES_MAX {
        let bytes = source.metadata().map_or(bytes, |metadata| metadata.len());
        return Err(too_large(path, bytes));
    }
    Ok((sha256, bytes))
}

/// Copies a regular file into memory that is charged to `cgroup`. What happens to the file meanwhile may
/// spoil the copy, never change it later.
pub(super) fn copy(
    source: &File,
    path: &Path,
    cgroup: &Birth,
    limit: Duration,
) -> Result<SealedProgram, ProgramError> {
    let kept = |source| ProgramError::Copy {
        path: path.to_owned(),
        source,
    };
    let start = SLOT_HEADER_BYTES as u64;
    let mut memory = memory_file(c"wasmvm-program").map_err(kept)?;
    let request = CopyRequest {
        source: source.as_fd(),
        target: memory.as_fd(),
        target_offset: start,
        bytes_max: PROGRAM_BYTES_MAX + 1,
        cgroup: cgroup.unified.as_ref().map(AsFd::as_fd),
        cgroup_procs: &cgroup.procs,
    };
    copy_in_cgroup(&request, limit).map_err(kept)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(|errno| kept(errno.into()))?;
    let length = memory.metadata().map_err(kept)?.len();
    let bytes = length.saturating_sub(start);
    if bytes > PROGRAM_BYTES_MAX {
        return Err(too_large(path, bytes));
    }
    format::classify(&memory, path, start, bytes)?;
    memory.seek(SeekFrom::Start(start)).map_err(kept)?;
    let (sha256, hashed) = hash(&memory).map_err(kept)?;
    debug_assert_eq!(hashed, bytes, "nobody else writes it");
    let header = SlotHeader {
        kind: SlotKind::Wasm,
        content_bytes: bytes,
        sha256,
    };
    memory.write_all_at(&header.encode(), 0).map_err(kept)?;
    let seals = SealFlags::SEAL | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(|errno| kept(errno.into()))?;
    let slot = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).map_err(kept)?;
    Ok(SealedProgram { slot, sha256 })
}

pub(super) fn too_large(path: &Path, bytes: u64) -> ProgramError {
    ProgramError::TooLarge {
        path: path.to_owned(),
        bytes,
        bytes_max: PROGRAM_BYTES_MAX,
    }
}

/// From the file's position on; reads no more than one byte beyond the largest program.
fn hash(file: &File) -> io::Result<([u8; 32], u64)> {
    digest_of_rest(file.take(PROGRAM_BYTES_MAX + 1))
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;

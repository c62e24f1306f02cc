//! A copy of the program that nobody can change: what is hashed is what is compiled.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::ProgramError;

/// Largest program, bytes: its artifact, 2 to 4 times as large, has to fit into the slot
/// (`wasmvm_protocol::slot::SLOT_CONTENT_BYTES_MAX`).
pub(super) const PROGRAM_BYTES_MAX: u64 = 256 << 20;
/// Read at once for the hash, bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// A sealed copy, positioned at the start.
#[derive(Debug)]
pub(super) struct SealedCopy {
    pub file: File,
    pub sha256: [u8; 32],
    pub bytes: u64,
}

/// Copies a regular file. What happens to the file meanwhile may spoil the copy, never change it later.
pub(super) fn copy(source: &File, path: &Path) -> Result<SealedCopy, ProgramError> {
    let read = |source| ProgramError::Read {
        path: path.to_owned(),
        source,
    };
    let kept = |source| ProgramError::Copy {
        path: path.to_owned(),
        source,
    };
    let mut file = memfd().map_err(kept)?;
    let bytes = io::copy(&mut source.take(PROGRAM_BYTES_MAX + 1), &mut file).map_err(read)?;
    if bytes > PROGRAM_BYTES_MAX {
        let bytes = source.metadata().map_or(bytes, |metadata| metadata.len());
        return Err(too_large(path, bytes));
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|errno| kept(errno.into()))?;
    let sha256 = hash(&mut file).map_err(kept)?;
    Ok(SealedCopy {
        file,
        sha256,
        bytes,
    })
}

pub(super) fn too_large(path: &Path, bytes: u64) -> ProgramError {
    ProgramError::TooLarge {
        path: path.to_owned(),
        bytes,
        bytes_max: PROGRAM_BYTES_MAX,
    }
}

fn memfd() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"wasmvm-program", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create(c"wasmvm-program", flags)?.into()),
        result => Ok(result?.into()),
    }
}

fn hash(file: &mut File) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    file.rewind()?;
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => digest.update(&chunk[..n]),
        }
    }
    file.rewind()?;
    Ok(digest.finalize().into())
}

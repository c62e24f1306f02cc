//! The program: `args[0]` found inside the tree, judged by its first bytes, copied and hashed.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::bundle::ProcessSpec;

pub use self::error::ProgramError;

mod error;
mod format;
mod lookup;
mod seal;
#[cfg(test)]
mod tests;

/// What a WebAssembly binary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// A core module (WASI preview 1).
    Core,
    /// A component (WASI preview 2).
    Component,
}

/// A program that no tenant can change any more.
#[derive(Debug)]
pub struct Program {
    /// Where it was found, inside the tree.
    pub path: PathBuf,
    /// Its bytes: a memfd sealed against every change, positioned at the start.
    pub file: File,
    /// SHA-256 of what the memfd holds.
    pub sha256: [u8; 32],
    /// Length, bytes.
    pub bytes: u64,
    /// By its header.
    pub kind: ProgramKind,
}

impl Program {
    /// Opens the spec's program in the tree whose root is `root`.
    ///
    /// # Errors
    /// [`ProgramError`], with what was looked for, or what was found instead.
    pub fn open(root: BorrowedFd<'_>, spec: &ProcessSpec) -> Result<Self, ProgramError> {
        let (path, source) = lookup::find(root, spec)?;
        // A large file that is something else is not worth the copy; only the copy is believed.
        format::glance(&source, &path)?;
        let copy = seal::copy(&source, &path)?;
        let kind = format::judge(&copy.file, &path, copy.bytes)?;
        let program = Self {
            path,
            file: copy.file,
            sha256: copy.sha256,
            bytes: copy.bytes,
            kind,
        };
        tracing::debug!(path = ?program.path, bytes = program.bytes, kind = ?program.kind, "program found");
        Ok(program)
    }
}

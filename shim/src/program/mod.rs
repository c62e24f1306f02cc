//! The program: `args[0]` found inside the tree, judged by its first bytes, hashed; and copied to be compiled.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::bundle::ProcessSpec;
use crate::cgroup::Birth;

pub(crate) use self::error::ProgramError;
pub(crate) use self::seal::SealedProgram;

use self::lookup::Located;

mod error;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    pub use super::format::fuzz::program;
    pub use super::seal::fuzz::seal;
}
mod home;
mod lookup;
mod seal;
#[cfg(test)]
mod tests;

/// The kind of a WebAssembly binary, by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgramKind {
    /// A core module (WASI preview 1).
    Core,
    /// A component (WASI preview 2).
    Component,
}

/// A program as it lies in the tree, where its tenant may change it at any time.
#[derive(Debug)]
pub(crate) struct Program {
    /// Path of the program's file inside the tree.
    pub path: PathBuf,
    /// SHA-256 of the program when it was read.
    pub sha256: [u8; 32],
    /// Length of the program when it was read, bytes.
    pub bytes: u64,
    /// The kind of the program, by its header.
    pub kind: ProgramKind,
    /// The further findings in the tree, which the process is told.
    pub found: Found,
    file: File,
}

/// The findings in the tree about a process, besides its program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The exported function to call, where `args[0]` names one.
    pub function: Option<String>,
    /// The user's home directory, where the spec sets no `HOME`.
    pub home: Option<String>,
}

impl Program {
    /// Opens and reads the spec's program in the tree whose root is `root`. Nothing of its size is kept.
    ///
    /// # Errors
    /// [`ProgramError`], with what was looked for, or what was found instead.
    pub(crate) fn open(root: BorrowedFd<'_>, spec: &ProcessSpec) -> Result<Self, ProgramError> {
        let Located {
            path,
            file,
            function,
        } = lookup::find(root, spec)?;
        // A large file that is something else is not worth reading.
        format::probe_format(&file, &path)?;
        let (sha256, bytes) = seal::digest(&file, &path)?;
        let kind = format::classify(&file, &path, 0, bytes)?;
        if kind == ProgramKind::Component
            && let Some(function) = function
        {
            return Err(ProgramError::FunctionOfComponent { path, function });
        }
        tracing::debug!(?path, bytes, ?kind, "program found");
        Ok(Self {
            path,
            sha256,
            bytes,
            kind,
            found: Found {
                function,
                home: home::of(root, spec),
            },
            file,
        })
    }

    /// Copies the program, as the file is now, into memory that is charged to `cgroup`. Blocks, no longer than `limit`.
    ///
    /// # Errors
    /// [`ProgramError`]; also when the file is no program any more.
    pub(crate) fn seal(
        &self,
        cgroup: &Birth,
        limit: Duration,
    ) -> Result<SealedProgram, ProgramError> {
        seal::copy(&self.file, &self.path, cgroup, limit)
    }
}

//! The file that a runner works on: a file of memory with the program, and its memory limit, which PID 1 may
//! move while the program runs.
//!
//! ```text
//!  0                      8
//!  ┌──────────────────────┬───────────────────┐
//!  │ memory_bytes_max, LE │ Program (protobuf)│
//!  └──────────────────────┴───────────────────┘
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use protobuf::Message;
use rustix::fs::MemfdFlags;
use wasmvm_protocol::agent::Program;

/// Where the program begins.
const PROGRAM_OFFSET: usize = size_of::<u64>();

/// The file on PID 1's side.
#[derive(Debug)]
pub struct WorkFile(File);

impl WorkFile {
    /// Holds `program` and its limit.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new(program: &Program) -> io::Result<Self> {
        let mut file = File::from(rustix::fs::memfd_create("program", MemfdFlags::CLOEXEC)?);
        let mut bytes = program.memory_bytes_max.to_le_bytes().to_vec();
        program.write_to_vec(&mut bytes).map_err(io::Error::other)?;
        file.write_all(&bytes)?;
        Ok(Self(file))
    }

    /// Moves the limit; the runner sees it when its memory next grows.
    ///
    /// # Errors
    /// `pwrite(2)`'s.
    pub fn set_memory_bytes_max(&self, bytes: u64) -> io::Result<()> {
        self.0.write_all_at(&bytes.to_le_bytes(), 0)
    }

    /// A descriptor for the runner.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// The runner's side of the limit.
#[derive(Debug)]
pub struct MemoryLimit(File);

impl MemoryLimit {
    /// Takes the file apart.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no program.
    pub fn open(file: File) -> io::Result<(Program, Self)> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let program_length = length
            .checked_sub(PROGRAM_OFFSET)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut bytes = vec![0; program_length];
        file.read_exact_at(&mut bytes, PROGRAM_OFFSET as u64)?;
        let program = Program::parse_from_bytes(&bytes)?;
        Ok((program, Self(file)))
    }

    /// Bytes that the instance may have now; 0 is no bound.
    ///
    /// # Errors
    /// `pread(2)`'s.
    pub fn bytes_max(&self) -> io::Result<u64> {
        let mut bytes = [0; PROGRAM_OFFSET];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_arrives_and_the_limit_moves() {
        let mut program = Program::new();
        program.args = vec!["a".into()];
        program.memory_bytes_max = 7;
        let work = WorkFile::new(&program).unwrap();
        let runner = File::from(work.descriptor().unwrap());
        let (read, limit) = MemoryLimit::open(runner).unwrap();
        assert_eq!(read, program);
        assert_eq!(limit.bytes_max().unwrap(), 7);
        work.set_memory_bytes_max(1 << 40).unwrap();
        assert_eq!(limit.bytes_max().unwrap(), 1 << 40);
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(MemoryLimit::open(tempfile::tempfile().unwrap()).is_err());
    }
}

//! One directory of a cgroup, held open: what has its path later is another one.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

use super::CgroupError;
use super::host::Kind;

/// Longest file of a cgroup that is read, bytes; `io.stat` grows with the host's disks.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One directory of a cgroup.
#[derive(Debug)]
pub(super) struct Directory {
    pub path: PathBuf,
    pub kind: Kind,
    dir: File,
}

impl Directory {
    pub fn open(path: &Path, kind: Kind) -> Result<Self, CgroupError> {
        let dir = File::open(path).map_err(|source| CgroupError::at(path, "open", source))?;
        Ok(Self {
            path: path.to_owned(),
            kind,
            dir,
        })
    }

    pub fn try_clone(&self) -> Result<OwnedFd, CgroupError> {
        let clone = self.dir.try_clone().map(OwnedFd::from);
        clone.map_err(|source| CgroupError::at(&self.path, "open again", source))
    }

    /// For a child that writes itself into it.
    pub fn open_procs(&self) -> Result<OwnedFd, CgroupError> {
        let file = self.open_file("cgroup.procs", OFlags::WRONLY);
        file.map(OwnedFd::from)
            .map_err(|source| CgroupError::at(&self.path, "open cgroup.procs of", source))
    }

    pub fn read(&self, name: &str) -> io::Result<String> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Not created when absent: a cgroup's files are the kernel's.
    pub fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let mut file = self.open_file(name, OFlags::WRONLY | OFlags::TRUNC)?;
        file.write_all(value.as_bytes())
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC;
        Ok(openat(&self.dir, name, flags, Mode::empty())?.into())
    }
}

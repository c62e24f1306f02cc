//! The memory that artifacts lie in while VMs map them: one tmpfs of our own for the host.
//!
//! The pages are charged to the process that wrote them, so no tenant pays for shared ones, and no disk is read
//! when a task starts. The tmpfs's size is a share of the host's memory: `/run`, in which it is mounted, belongs
//! to the host and stays free. It is mounted once, at the first use, in the mount namespace of the host's
//! first process: a shim that lives in another one (containerd under `PrivateMounts=`) works on it by
//! descriptors, so that there are never two.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstatfs, openat};
use rustix::mount::{MountFlags, mount, mount_remount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::folder::{Folder, FolderError};
use super::room::Budget;
use crate::sys::mounts::leave_shared_directories;

/// Share of the host's memory that artifacts may take: one in so many.
const MEMORY_SHARE: u64 = 4;
/// Type of a tmpfs: `TMPFS_MAGIC` of `include/uapi/linux/magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Mode of the mounted root. A plain directory at the path, or another program's tmpfs, has another mode.
const ROOT_MODE: u32 = 0o1700;
/// Source of the mount, as `mount` and `/proc/PID/mountinfo` show it.
const SOURCE: &str = "wasmvm-artifacts";
/// The mount namespace of the host's first process.
pub(super) const HOST_MOUNTS: &str = "/proc/1/ns/mnt";
/// Name of the tmpfs in errors.
const SETTING: &str = "the artifacts' tmpfs";

/// The tmpfs: its place and its size.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// The mount point, made when needed.
    pub path: PathBuf,
    /// Largest size by the operator's setting, bytes.
    pub bytes_max: u64,
    /// Mount namespace that the tmpfs is mounted in.
    pub namespace: &'static str,
}

impl Memory {
    /// Opens the tmpfs; mounts it at the first use since the host's boot.
    ///
    /// # Errors
    /// [`FolderError`].
    pub(super) fn open(&self) -> Result<Folder, FolderError> {
        let memory = self.clone();
        let failed = |source| FolderError::Open {
            path: self.path.clone(),
            source,
        };
        in_mounts_of(self.namespace, move || memory.open_here()).map_err(failed)?
    }

    /// Budget of the artifacts in the tmpfs.
    pub(super) fn budget(&self) -> Budget {
        Budget {
            bytes_max: self.size(),
            reserve_percent: 0,
        }
    }

    /// Size of the tmpfs, bytes: that of the setting, and not more than a share of the host's memory.
    fn size(&self) -> u64 {
        let info = rustix::system::sysinfo();
        let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
        self.bytes_max.min(total / MEMORY_SHARE)
    }

    fn open_here(&self) -> Result<Folder, FolderError> {
        let failed = |source| FolderError::Open {
            path: self.path.clone(),
            source,
        };
        if !self.is_mounted().map_err(failed)? {
            self.mount_once().map_err(failed)?;
        }
        Folder::open(SETTING, &self.path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
    }

    /// Whether the file system at the path is the tmpfs, and large enough.
    fn is_mounted(&self) -> io::Result<bool> {
        Ok(self
            .mounted_bytes()?
            .is_some_and(|bytes| bytes >= self.size()))
    }

    /// The size of the tmpfs at the path, if it is ours: a separate file system of that type,
    /// with our owner and mode.
    fn mounted_bytes(&self) -> io::Result<Option<u64>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match openat(rustix::fs::CWD, &self.path, flags, Mode::empty()) {
            Ok(root) => File::from(root),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let metadata = root.metadata()?;
        let parent = std::fs::metadata(self.parent())?;
        let stat = fstatfs(&root)?;
        let ours = stat.f_type == TMPFS_MAGIC
            && metadata.dev() != parent.dev()
            && metadata.mode() & 0o7777 == ROOT_MODE
            && metadata.uid() == rustix::process::geteuid().as_raw();
        if !ours && metadata.dev() != parent.dev() {
            let path = self.path.display();
            return Err(io::Error::other(format!(
                "another file system is mounted at {path}; unmount it"
            )));
        }
        let block = u64::try_from(stat.f_bsize).unwrap_or(0);
        Ok(ours.then(|| stat.f_blocks.saturating_mul(block)))
    }

    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Mounts the tmpfs, or makes it larger, unless another shim has done it meanwhile.
    fn mount_once(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.path)?;
        let lock = File::open(self.parent())?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let size = self.size();
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        let options = |text: String| std::ffi::CString::new(text).map_err(io::Error::other);
        match self.mounted_bytes()? {
            Some(bytes) if bytes >= size => {}
            Some(_) => mount_remount(&self.path, flags, options(format!("size={size}"))?)?,
            None => {
                self.remove_hidden();
                let options = options(format!("size={size},mode={ROOT_MODE:o}"))?;
                mount(SOURCE, &self.path, c"tmpfs", flags, options.as_c_str())?;
                tracing::info!(path = %self.path.display(), bytes = size, "memory for artifacts mounted");
            }
        }
        Ok(())
    }

    /// Removes artifacts that the mount will hide: those of versions without a tmpfs.
    fn remove_hidden(&self) {
        if let Ok(Some(folder)) = Folder::open(SETTING, &self.path) {
            super::room::make_all_room(&folder);
        }
    }
}

/// Runs `work` in another mount namespace; on this thread, when that is the thread's own.
fn in_mounts_of<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let own = std::fs::metadata("/proc/thread-self/ns/mnt")?;
    let host = match File::open(namespace) {
        Ok(host) => host,
        // Without access to the namespace there is none but ours.
        Err(_) => return Ok(work()),
    };
    let metadata = host.metadata()?;
    if (metadata.dev(), metadata.ino()) == (own.dev(), own.ino()) {
        return Ok(work());
    }
    let inside = move || {
        leave_shared_directories()?;
        move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(work())
    };
    let thread = std::thread::Builder::new()
        .name("host-mounts".into())
        .spawn(inside)?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread in the host's mount namespace ended"))?
}

#[cfg(test)]
mod tests;

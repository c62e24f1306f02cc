//! The rootfs: containerd's mounts for it, or the directory that the spec names.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountFlags;

use wasmvm_protocol::tree::is_kernel_file_system;

use super::options::{self, MountOptions};
use super::{TreeError, bind};
use crate::sys::mounts::{MountChange, change_mount};

/// Most mounts of one request.
const ROOTFS_MOUNTS_MAX: usize = 64;
/// Longest option string of `mount(2)`, bytes: one page with its closing zero.
const DATA_BYTES_MAX: usize = 4095;

/// A mount that Create brings for the rootfs (`containerd.types.Mount`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootfsMount {
    /// File system type, or `bind`.
    pub kind: String,
    /// Source, as the type understands it.
    pub source: String,
    /// A directory below the rootfs; empty in practice, and nothing else is supported.
    pub target: String,
    /// Options of the mount, as in fstab(5).
    pub options: Vec<String>,
}

/// Mounts the rootfs on `target` and opens it there. `label` is `linux.mountLabel`.
pub(super) fn mount(
    mounts: &[RootfsMount],
    target: &Path,
    label: Option<&str>,
) -> Result<OwnedFd, TreeError> {
    if mounts.is_empty() {
        mount_directory(target)?;
    }
    for (index, mount) in mounts.iter().enumerate() {
        check(mount, index)?;
        mount_one(mount, index, target, label)?;
    }
    let host = |step| move |source| TreeError::Host { step, source };
    let root = open_root(target).map_err(host("open the rootfs"))?;
    let change = MountChange {
        read_only: false,
        harmless: true,
        recursive: false,
    };
    change_mount(&root, change).map_err(host("restrict the rootfs"))?;
    Ok(root)
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Makes a directory a mount point by a bind to itself, without the mounts below it.
fn mount_directory(target: &Path) -> Result<(), TreeError> {
    let (copy, _) = bind::copy(target, false, Path::new("/"))?;
    let attach = || bind::attach(&copy, open_root(target)?.as_fd());
    attach().map_err(|source| TreeError::Attach {
        destination: "/".into(),
        source,
    })
}

fn check(mount: &RootfsMount, index: usize) -> Result<(), TreeError> {
    let refuse = |reason: &str| {
        Err(TreeError::RootfsRefused {
            index,
            kind: mount.kind.clone(),
            mounted: mount.source.clone(),
            reason: reason.to_owned(),
        })
    };
    if index >= ROOTFS_MOUNTS_MAX {
        return refuse("a rootfs has at most 64 mounts");
    }
    if is_kernel_file_system(&mount.kind) {
        return refuse("it is an interface to the host's kernel");
    }
    if !matches!(mount.target.as_str(), "" | "/") {
        return refuse("mounts below the rootfs are not supported");
    }
    Ok(())
}

/// Mounts one of the request's mounts: by `mount(2)`, or as a bind of one directory.
fn mount_one(
    mount: &RootfsMount,
    index: usize,
    target: &Path,
    label: Option<&str>,
) -> Result<(), TreeError> {
    let mut options = options::parse(&mount.options);
    options.label(label);
    if mount.kind != "bind" && !options.bind {
        return mount_fs(mount, &options, target).map_err(|err| failed(mount, index, target, err));
    }
    let source = Path::new(&mount.source);
    let (copy, _) = bind::copy(source, false, Path::new("/"))?;
    let read_only = options.flags.contains(MountFlags::RDONLY);
    let change = MountChange {
        read_only,
        harmless: true,
        recursive: false,
    };
    let attach = || {
        change_mount(&copy, change)?;
        bind::attach(&copy, open_root(target)?.as_fd())
    };
    attach().map_err(|err| failed(mount, index, target, err))
}

fn mount_fs(mount: &RootfsMount, options: &MountOptions, target: &Path) -> io::Result<()> {
    let mut data = options.data.join(",");
    if data.len() > DATA_BYTES_MAX
        && let Some((base, shorter)) = relative_lowerdirs(&options.data)
    {
        // The thread has its own working directory; the tree's root is entered at the end.
        rustix::process::chdir(&base)?;
        data = shorter.join(",");
    }
    if data.len() > DATA_BYTES_MAX {
        return Err(io::Error::other("its options are longer than one page"));
    }
    let data = CString::new(data)?;
    let flags = options.flags | MountFlags::NODEV | MountFlags::NOSUID;
    Ok(rustix::mount::mount(
        &mount.source,
        target,
        &mount.kind,
        flags,
        data.as_c_str(),
    )?)
}

/// The options with `lowerdir` relative to the directory that its parts have in common, which is
/// returned too; as containerd does for images of many layers.
fn relative_lowerdirs(data: &[String]) -> Option<(PathBuf, Vec<String>)> {
    let lower = data
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let dirs: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut base = dirs.first()?.parent()?.to_owned();
    while !dirs
        .iter()
        .all(|dir| *dir != base && dir.starts_with(&base))
    {
        base = base.parent()?.to_owned();
    }
    let short: Option<Vec<&str>> = dirs
        .iter()
        .map(|dir| dir.strip_prefix(&base).ok()?.to_str())
        .collect();
    let short = format!("lowerdir={}", short?.join(":"));
    let data = data
        .iter()
        .map(|option| {
            if option.starts_with("lowerdir=") {
                short.clone()
            } else {
                option.clone()
            }
        })
        .collect();
    Some((base, data))
}

fn failed(mount: &RootfsMount, index: usize, target: &Path, source: io::Error) -> TreeError {
    TreeError::Rootfs {
        index,
        kind: mount.kind.clone(),
        mounted: mount.source.clone(),
        target: target.to_owned(),
        source,
    }
}

//! Empty file systems in the tree. Their pages are charged to who writes them: the VMM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::point::{self, PointKind};
use super::{TreeError, bind};
use crate::bundle::TmpfsOptions;

/// Size of the tree's `/dev`, bytes: mount points only.
const DEV_BYTES: &str = "262144";
/// Inodes of the tree's `/dev`.
const DEV_INODES: &str = "1024";
/// Empty files of the tree's `/dev`: where the guest's devices of these names go.
const DEV_POINTS: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Links of the tree's `/dev`, as the OCI specification has them (config-linux, "Dev symbolic links"): where
/// the guest's proc is mounted they lead to the program's own descriptors.
const DEV_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts a tmpfs on `destination`. Without a size of its own it is as large as `size_bytes`, the
/// task's memory, or half of the host's.
pub(super) fn mount(
    root: BorrowedFd<'_>,
    options: &TmpfsOptions,
    destination: &Path,
    read_only: bool,
    size_bytes: Option<u64>,
) -> Result<(), TreeError> {
    let mut parameters = options.parameters.clone();
    let sized = |(key, _): &(String, String)| key == "size" || key == "nr_blocks";
    if let Some(bytes) = size_bytes.filter(|_| !parameters.iter().any(sized)) {
        parameters.push(("size".to_owned(), bytes.to_string()));
    }
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.no_exec);
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    let tmpfs = create(&parameters, attributes, destination)?;
    attach(root, &tmpfs, destination)
}

/// Mounts what lies below the guest's own device files: so the rootfs itself gets no mount points.
pub(super) fn mount_dev(root: BorrowedFd<'_>) -> Result<(), TreeError> {
    let destination = Path::new("/dev");
    let parameters = [
        ("size", DEV_BYTES),
        ("nr_inodes", DEV_INODES),
        ("mode", "755"),
    ];
    let parameters = parameters.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let tmpfs = create(&parameters, MountAttrFlags::MOUNT_ATTR_NOEXEC, destination)?;
    for name in DEV_POINTS {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&tmpfs, name, flags, Mode::from_raw_mode(0o666))
            .map_err(|errno| failed(destination, errno))?;
    }
    for (name, target) in DEV_LINKS {
        rustix::fs::symlinkat(target, &tmpfs, name).map_err(|errno| failed(destination, errno))?;
    }
    attach(root, &tmpfs, destination)
}

fn create(
    parameters: &[(String, String)],
    attributes: MountAttrFlags,
    destination: &Path,
) -> Result<OwnedFd, TreeError> {
    let failed = |errno| failed(destination, errno);
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    for (key, value) in parameters {
        rustix::mount::fsconfig_set_string(&fs, key.as_str(), value.as_str()).map_err(|errno| {
            TreeError::TmpfsOption {
                destination: destination.to_owned(),
                option: format!("{key}={value}"),
                source: errno.into(),
            }
        })?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(failed)?;
    let harmless = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, harmless | attributes)
        .map_err(failed)
}

fn attach(root: BorrowedFd<'_>, tmpfs: &OwnedFd, destination: &Path) -> Result<(), TreeError> {
    let point = point::ensure(root, destination, PointKind::Directory)?;
    bind::attach(tmpfs, point.as_fd()).map_err(|source| TreeError::Attach {
        destination: destination.to_owned(),
        source,
    })
}

fn failed(destination: &Path, errno: Errno) -> TreeError {
    TreeError::Attach {
        destination: destination.to_owned(),
        source: errno.into(),
    }
}

//! The tree's `/dev`, on which the guest mounts its devices: mount points and links.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::TreeError;
use super::tmpfs::{attach, create, failed, parameters};
use crate::bundle::TaskSpec;

/// Size of the tree's `/dev`, bytes: mount points only.
const DEV_BYTES: &str = "262144";
/// Inodes of the tree's `/dev`.
const DEV_INODES: &str = "1024";
/// Empty files of the tree's `/dev`: mount points for the guest's devices of these names.
const DEV_POINTS: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Links of the tree's `/dev`, by the OCI specification (config-linux, "Dev symbolic links"): where the guest's
/// proc is mounted, the links lead to the program's own descriptors.
const DEV_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts a tmpfs with the tree's `/dev`: so the rootfs itself gets no mount points for the guest's devices.
pub(super) fn mount(root: BorrowedFd<'_>, spec: &TaskSpec) -> Result<(), TreeError> {
    let destination = Path::new("/dev");
    let own = [
        ("size", DEV_BYTES),
        ("nr_inodes", DEV_INODES),
        ("mode", "755"),
    ];
    let parameters = parameters(&own, spec);
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

//! Empty file systems in the tree. Their pages are charged to the process that writes them: the VMM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::point::{self, PointKind};
use super::{TreeError, bind, copy_up};
use crate::bundle::{AccessTimes, TaskSpec, TmpfsOptions};

/// Size of the tree's `/dev`, bytes: mount points only.
const DEV_BYTES: &str = "262144";
/// Inodes of the tree's `/dev`.
const DEV_INODES: &str = "1024";
/// Empty files of the tree's `/dev`: mount points for the guest's devices of these names.
const DEV_POINTS: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Links of the tree's `/dev`, as the OCI specification has them (config-linux, "Dev symbolic links"): where
/// the guest's proc is mounted they lead to the program's own descriptors.
const DEV_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts a tmpfs on `destination`. Without a size of its own it is as large as the task's memory, or half of
/// the host's; without a mode it takes the mode of the directory that it hides, as under runc.
pub(super) fn mount(
    root: BorrowedFd<'_>,
    options: &TmpfsOptions,
    destination: &Path,
    read_only: bool,
    spec: &TaskSpec,
) -> Result<(), TreeError> {
    let mut own = options.parameters.clone();
    let given = |own: &[(String, String)], keys: &[&str]| {
        own.iter().any(|(key, _)| keys.contains(&key.as_str()))
    };
    if let Some(bytes) = spec.memory_bytes_max()
        && !given(&own, &["size", "nr_blocks"])
    {
        own.push(("size".to_owned(), bytes.to_string()));
    }
    let hidden = point::find_directory(root, destination)?;
    if let Some(hidden) = &hidden
        && !given(&own, &["mode"])
    {
        let mode = rustix::fs::fstat(hidden).map_err(|errno| failed(destination, errno))?;
        own.push(("mode".to_owned(), format!("{:o}", mode.st_mode & 0o7777)));
    }
    own.extend(label(spec));
    let attributes = options.attributes();
    let mut top = attributes;
    top.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    if let Some(hidden) = hidden.filter(|_| options.copy_up) {
        let tmpfs = create(&own, attributes, destination)?;
        return copy_up::attach(root, &tmpfs, &hidden, options, top, spec, destination);
    }
    let tmpfs = create(&own, top, destination)?;
    attach(root, &tmpfs, destination)
}

impl TmpfsOptions {
    /// Flags of the mount. The kernel keeps times of access in one of three ways (mount_setattr(2)).
    fn attributes(&self) -> MountAttrFlags {
        let mut attributes = MountAttrFlags::empty();
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.no_exec);
        attributes.set(
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            self.no_directory_times,
        );
        attributes
            | match self.access_times {
                AccessTimes::Relative => MountAttrFlags::empty(),
                AccessTimes::Never => MountAttrFlags::MOUNT_ATTR_NOATIME,
                AccessTimes::Always => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            }
    }
}

/// The parameters with the task's mount label, if it has one.
pub(super) fn parameters(own: &[(&str, &str)], spec: &TaskSpec) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    own.iter().map(owned).chain(label(spec)).collect()
}

/// The parameter for `linux.mountLabel`, which labels every file of the file system.
fn label(spec: &TaskSpec) -> Option<(String, String)> {
    let label = spec.labels.selinux_mount.clone()?;
    Some(("context".to_owned(), label))
}

/// Mounts the file system below the guest's own device files: so the rootfs itself gets no mount points.
pub(super) fn mount_dev(root: BorrowedFd<'_>, spec: &TaskSpec) -> Result<(), TreeError> {
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

pub(super) fn create(
    parameters: &[(String, String)],
    attributes: MountAttrFlags,
    destination: &Path,
) -> Result<OwnedFd, TreeError> {
    let failed = |errno| failed(destination, errno);
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    for (key, value) in parameters {
        let set = match value.as_str() {
            "" => rustix::mount::fsconfig_set_flag(&fs, key.as_str()),
            value => rustix::mount::fsconfig_set_string(&fs, key.as_str(), value),
        };
        set.map_err(|errno| TreeError::TmpfsOption {
            destination: destination.to_owned(),
            option: format!("{key}={value}"),
            source: errno.into(),
        })?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(failed)?;
    let harmless = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, harmless | attributes)
        .map_err(failed)
}

pub(super) fn attach(
    root: BorrowedFd<'_>,
    tmpfs: &OwnedFd,
    destination: &Path,
) -> Result<(), TreeError> {
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

//! `tmpcopyup`: a tmpfs that shows the files it hides, and in which they can be changed without changing the
//! originals.
//!
//! runc copies the files when it mounts. Here overlayfs makes the copies, file by file when one is changed: a
//! copy by the shim would be of a size that the image chooses, in memory that no task is charged for.
//!
//! ```text
//! destination ─► overlay ─┬─ upper, work: the tmpfs, which lies between and bounds what is written
//!                         └─ lower: the directory that it hides
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Gid, Uid};

use super::{TreeError, tmpfs};
use crate::bundle::{TaskSpec, TmpfsOptions};

/// Directories of the tmpfs: overlayfs's upper and work directory.
const UPPER: &str = "upper";
const WORK: &str = "work";

/// Mounts `layer`, a new tmpfs, on `destination`, and over it an overlay that shows `hidden` through.
pub(super) fn attach(
    root: BorrowedFd<'_>,
    layer: &OwnedFd,
    hidden: &OwnedFd,
    options: &TmpfsOptions,
    attributes: MountAttrFlags,
    spec: &TaskSpec,
    destination: &Path,
) -> Result<(), TreeError> {
    let failed = |source| TreeError::TmpfsOption {
        destination: destination.to_owned(),
        option: "tmpcopyup (it needs overlayfs)".to_owned(),
        source,
    };
    make_layers(layer, hidden, options).map_err(failed)?;
    tmpfs::attach(root, layer, destination)?;
    let overlay = overlay(layer, hidden, attributes, spec).map_err(failed)?;
    tmpfs::attach(root, &overlay, destination)
}

/// Makes the upper directory, which the program sees as the top: of the tmpfs's mode, and of the owner that the
/// options give, else of the hidden directory's.
fn make_layers(layer: &OwnedFd, hidden: &OwnedFd, options: &TmpfsOptions) -> io::Result<()> {
    for name in [UPPER, WORK] {
        rustix::fs::mkdirat(layer, name, Mode::RWXU)?;
    }
    let (own, below) = (rustix::fs::fstat(layer)?, rustix::fs::fstat(hidden)?);
    let given = |key| options.parameters.iter().any(|(name, _)| name == key);
    let uid = if given("uid") {
        own.st_uid
    } else {
        below.st_uid
    };
    let gid = if given("gid") {
        own.st_gid
    } else {
        below.st_gid
    };
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(layer, UPPER, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(own.st_mode & 0o7777);
    Ok(rustix::fs::chmodat(layer, UPPER, mode, AtFlags::empty())?)
}

fn overlay(
    layer: &OwnedFd,
    hidden: &OwnedFd,
    attributes: MountAttrFlags,
    spec: &TaskSpec,
) -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let at = |fd: &OwnedFd| format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    let layers = [
        ("lowerdir", at(hidden)),
        ("upperdir", format!("{}/{UPPER}", at(layer))),
        ("workdir", format!("{}/{WORK}", at(layer))),
    ];
    for (key, path) in &layers {
        rustix::mount::fsconfig_set_string(&fs, *key, path.as_str())?;
    }
    for (key, value) in tmpfs::parameters(&[], spec) {
        rustix::mount::fsconfig_set_string(&fs, key.as_str(), value.as_str())?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    let harmless = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        harmless | attributes,
    )?)
}

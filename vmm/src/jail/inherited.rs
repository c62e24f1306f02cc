//! Protects the files that the VMM inherits: a file of the host can't be changed through the VMM's descriptors.
//!
//! uid 0 in the jail is the host's, which owns the VMM's executable, the guest's kernel and initramfs and
//! the files of /dev. A guest that had taken over its VMM could reach their inodes by `/proc/self/exe` and
//! by its descriptors: give the executable another mode, or, as soon as no VMM runs, another content, and
//! so run code on the host (as in CVE-2019-5736); or close /dev/kvm to everyone else. Neither Landlock
//! nor a list of system calls prevents `fchmod(2)` of a descriptor. So the mounts that all of these files
//! were opened on are made read-only here: mounts of this namespace, which no other
//! process uses. A device's ioctls work on such a mount.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FsWord, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags,
};

use super::syscalls::make_mount_read_only;
use super::{JailError, Step};

const EXECUTABLE: &str = "self/exe";

/// `PIPEFS_MAGIC`, `SOCKFS_MAGIC`, `ANON_INODE_FS_MAGIC` (Linux `include/uapi/linux/magic.h`): files without
/// a name on the host, whose mode no other process uses.
const NAMELESS: [FsWord; 3] = [0x5049_5045, 0x534f_434b, 0x0904_1934];

/// Makes the mounts of the executable and of all open files read-only. Called before the old root is detached.
pub(super) fn protect(proc_root: &OwnedFd) -> Result<(), JailError> {
    const STEP: &str = "make the mount of an inherited file read-only";
    for name in writable(proc_root).step(STEP)? {
        protect_one(proc_root, &name).step(STEP)?;
    }
    Ok(())
}

/// The executable and descriptors on a mount that can be written to, by their names below `proc_root`.
pub(super) fn writable(proc_root: &OwnedFd) -> io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(proc_root, "self/fd", flags, Mode::empty())?;
    let mut found = vec![];
    if is_writable(proc_root, EXECUTABLE)? {
        found.push(EXECUTABLE.to_owned());
    }
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy();
        let name = format!("self/fd/{number}");
        if !number.starts_with('.') && is_writable(proc_root, &name)? {
            found.push(name);
        }
    }
    Ok(found)
}

fn is_writable(proc_root: &OwnedFd, name: &str) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc_root, name, flags, Mode::empty())?;
    if NAMELESS.contains(&rustix::fs::fstatfs(&file)?.f_type) {
        return Ok(false);
    }
    let flags = rustix::fs::fstatvfs(&file)?.f_flag;
    Ok(!flags.contains(StatVfsMountFlags::RDONLY))
}

/// Makes the mount of a file read-only; `name` is a link of /proc to the open file.
fn protect_one(proc_root: &OwnedFd, name: &str) -> io::Result<()> {
    let stat = rustix::fs::statx(proc_root, name, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let path = rustix::fs::readlinkat(proc_root, name, Vec::new())?;
    let path = Path::new(OsStr::from_bytes(path.as_bytes()));
    make_mount_read_only(mount_root(path, stat.stx_mnt_id)?)
}

/// The root of mount `id`, at or above `path`.
fn mount_root(path: &Path, id: u64) -> io::Result<OwnedFd> {
    let is_root = |path: &&Path| {
        let stat = rustix::fs::statx(CWD, *path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
        stat.is_ok_and(|stat| {
            stat.stx_mnt_id == id && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        })
    };
    let root = path.ancestors().find(is_root);
    let root = root
        .ok_or_else(|| io::Error::other(format!("{} is on no mount in sight", path.display())))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, Permissions};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt;

    /// Needs root. The test's own thread gets mounts of its own, which end with it.
    #[test]
    fn an_inherited_file_cannot_be_changed_even_by_its_owner() {
        super::super::syscalls::unshare_mounts().unwrap();
        let written = tempfile::NamedTempFile::new().unwrap();
        let file = File::open(written.path()).unwrap();
        let proc_root = super::super::tree::detached_proc().unwrap();
        let name = format!("self/fd/{}", file.as_raw_fd());
        let reopen = || rustix::fs::openat(&proc_root, &name, OFlags::RDWR, Mode::empty());
        let change_mode = || file.set_permissions(Permissions::from_mode(0o777));
        reopen().unwrap();
        change_mode().unwrap();
        drop(written);
        assert!(writable(&proc_root).unwrap().contains(&name));
        protect_one(&proc_root, &name).unwrap();
        assert!(!writable(&proc_root).unwrap().contains(&name));
        assert_eq!(reopen().unwrap_err(), rustix::io::Errno::ROFS);
        let error = change_mode().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn a_mount_that_is_not_in_sight_is_named() {
        let error = mount_root(Path::new("/a/b"), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("/a/b"), "{error}");
    }
}

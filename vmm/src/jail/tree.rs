//! The served tree becomes the process's root; /proc stays outside of it.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, unmount,
};

use super::{JailError, Step};

/// A /proc that is mounted nowhere: only the processes of this PID namespace (`subset=pid`, so no
/// `/proc/sys`), read-only.
pub(super) fn detached_proc() -> Result<OwnedFd, JailError> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).step("open a proc file system")?;
    fsconfig_set_string(&context, "subset", "pid").step("restrict /proc to processes")?;
    fsconfig_create(&context).step("make a /proc of this PID namespace")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step("mount /proc detached")
}

/// Opens /proc/self/fd. `self` is resolved now, while this thread is the only one: it names the process, not a
/// thread.
pub(super) fn proc_self_fd(proc_root: &OwnedFd) -> Result<OwnedFd, JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(proc_root, "self/fd", flags, Mode::empty()).step("open /proc/self/fd")
}

/// Makes the working directory, a mount point, the root of the mount namespace and detaches what was
/// there before. No directory is made: the tree may be read-only (`pivot_root(2)`, NOTES, "`.`, `.`").
pub(super) fn make_root() -> Result<(), JailError> {
    // Nothing that happens here may show on the host. Not private: mounts that the host makes later
    // below a volume still come in where the shim asked for it.
    let receive_only = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", receive_only).step("stop mounts from propagating to the host")?;
    rustix::process::pivot_root(".", ".").step("make the file tree the root")?;
    unmount(".", UnmountFlags::DETACH).step("detach the old root")?;
    rustix::process::chdir("/").step("enter the new root")
}

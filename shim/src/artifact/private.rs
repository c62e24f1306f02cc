//! A copy of a file for one VM alone, where VMs share no memory with others.
//!
//! The copy lies in a tmpfs of its own that is mounted nowhere and is released with the last descriptor or mapping
//! of the file. Its pages are charged to the cgroup of the copy's VM. As all files that a VMM is
//! given, the copy lies on a mount that cannot be written through.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::cgroup::Birth;
use crate::sys::copy::{CopyRequest, copy_in_cgroup};
use crate::sys::mounts::{MountChange, change_mount};

/// Longest time for a copy.
const COPY_MAX: Duration = Duration::from_secs(60);
/// Name of the copy in its file system.
const NAME: &str = "private";

/// Copies a file of ours; blocks the thread meanwhile.
///
/// # Errors
/// The kernel's; an end by signal 9 says that the cgroup has no room for the copy.
pub(crate) fn private_copy(source: &File, cgroup: &Birth) -> io::Result<File> {
    let bytes = source.metadata()?.len();
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0700")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = openat(&root, NAME, flags, Mode::RUSR)?;
    let request = CopyRequest {
        source: source.as_fd(),
        target: target.as_fd(),
        target_offset: 0,
        bytes_max: bytes,
        cgroup: cgroup.unified.as_ref().map(|directory| directory.as_fd()),
        cgroup_procs: &cgroup.procs,
    };
    copy_in_cgroup(&request, COPY_MAX)?;
    drop(target);
    let change = MountChange {
        read_only: true,
        harmless: true,
        ..MountChange::default()
    };
    change_mount(&root, change)?;
    let file = File::from(openat(
        root,
        NAME,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?);
    if file.metadata()?.len() == bytes {
        Ok(file)
    } else {
        Err(io::Error::other("the file was changed while it was copied"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::bundle::Resources;
    use crate::cgroup::{Cgroup, Hierarchies};
    use crate::cleanup;
    use crate::journal::Journal;

    #[test]
    fn a_private_copy_is_its_vms_alone_and_charged_to_it() {
        const BYTES: u64 = 4 << 20;
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(&vec![7; 4 << 20]).unwrap();
        let name = format!("wasmvm-test-{}-private", std::process::id());
        let place = Hierarchies::find()
            .unwrap()
            .place(&Path::new(&name).join("task"));
        let root = tempfile::tempdir().unwrap();
        let journal =
            Journal::create(root.path(), "default", "web", Path::new("/b"), None).unwrap();
        let cgroup = Cgroup::create(&place, &Resources::default(), &Arc::new(journal)).unwrap();
        let copies = [(); 2].map(|()| private_copy(&source, &cgroup.birth().unwrap()).unwrap());
        let used = cgroup
            .read("memory", "memory.current")
            .or_else(|| cgroup.read("memory", "memory.usage_in_bytes"));
        let used: u64 = used.unwrap().trim().parse().unwrap();
        assert!(used >= 2 * BYTES, "{used} bytes");
        let identity = |file: &File| {
            let metadata = file.metadata().unwrap();
            (metadata.dev(), metadata.ino())
        };
        assert_ne!(identity(&copies[0]), identity(&copies[1]));
        for mut copy in copies {
            let again = format!("/proc/self/fd/{}", copy.as_raw_fd());
            let error = File::options().write(true).open(again).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            let mut content = Vec::new();
            copy.read_to_end(&mut content).unwrap();
            assert!(content.len() == 4 << 20 && content.iter().all(|byte| *byte == 7));
        }
        cleanup::undo(root.path(), "default", "web").unwrap();
    }
}

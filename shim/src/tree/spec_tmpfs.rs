//! The tmpfs mounts that the spec asks for, with the parameters that the spec leaves out.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::tmpfs::{attach, create, failed, label};
use super::{TreeError, copy_up, point};
use crate::bundle::{TaskSpec, TmpfsOptions};

/// Mounts a tmpfs on `destination`. A tmpfs without a size in the spec is as large as the task's memory limit, or half
/// of the host's memory; one without a mode takes the mode of the directory that the mount hides, as under runc.
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

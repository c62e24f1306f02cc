//! The spec's mounts: which enter the tree, and as what.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::fields::refused;
use super::{BundleError, MountSource, TmpfsOptions, TreeMount, paths};

/// Most mounts of one task.
const MOUNTS_MAX: usize = 1024;

/// File systems of the kernel's own: the guest has its own, or none.
const GUEST_OWN_TYPES: [&str; 7] = [
    "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "devtmpfs",
];

/// Of mqueue, which `--ipc host` binds from the host.
const QUEUES: &str = "/dev/mqueue";

/// What `mounts` says.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub tree: Vec<TreeMount>,
    pub guest_dev: bool,
    pub guest_proc: bool,
}

/// Sorts the mounts out. A tmpfs at `/dev` is the guest's own, with its device files, and so is a proc at
/// `/proc`.
pub(super) fn convert(mounts: &[Mount], bundle: &Path) -> Result<Mounts, BundleError> {
    if mounts.len() > MOUNTS_MAX {
        let reason = format!("at most {MOUNTS_MAX} mounts are supported");
        return Err(refused(
            "mounts",
            &format!("{} mounts", mounts.len()),
            &reason,
        ));
    }
    let mut sorted = Mounts::default();
    for (i, mount) in mounts.iter().enumerate() {
        let destination = destination(mount, i)?;
        let options = mount.options().as_deref().unwrap_or_default();
        let kind = mount.typ().as_deref().unwrap_or_default();
        if kind == "proc" && destination == Path::new("/proc") {
            sorted.guest_proc = true;
        } else if GUEST_OWN_TYPES.contains(&kind) || destination == Path::new(QUEUES) {
            tracing::debug!(?destination, kind, "the guest has its own; mount ignored");
        } else if is_bind(kind, options) {
            sorted.tree.push(TreeMount {
                source: bind_source(mount, i, options, bundle)?,
                destination,
                read_only: is_read_only(options),
            });
        } else if kind == "tmpfs" && destination == Path::new("/dev") {
            sorted.guest_dev = true;
        } else if kind == "tmpfs" {
            sorted.tree.push(TreeMount {
                source: MountSource::Tmpfs(tmpfs_options(options, i)?),
                destination,
                read_only: is_read_only(options),
            });
        } else {
            let reason = "bind mounts and tmpfs are supported";
            return Err(refused(
                &format!("mounts[{i}].type"),
                &format!("{kind:?}"),
                reason,
            ));
        }
    }
    Ok(sorted)
}

/// As runc does: the option decides, whatever the type says.
fn is_bind(kind: &str, options: &[String]) -> bool {
    kind == "bind"
        || options
            .iter()
            .any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

fn is_read_only(options: &[String]) -> bool {
    options
        .iter()
        .rev()
        .find_map(|option| match option.as_str() {
            "ro" | "rro" => Some(true),
            "rw" => Some(false),
            _ => None,
        })
        .unwrap_or(false)
}

/// Absolute (older specs allow relative ones: from the root), cleaned, not the root itself.
fn destination(mount: &Mount, i: usize) -> Result<PathBuf, BundleError> {
    let given = mount.destination();
    let field = format!("mounts[{i}].destination");
    let refuse = |reason| Err(refused(&field, &format!("{given:?}"), reason));
    if given.to_string_lossy().contains('\0') {
        return refuse("it contains a zero byte");
    }
    let path = paths::cleaned(given);
    if path == Path::new("/") {
        return refuse("the root itself cannot be a mount's destination");
    }
    Ok(path)
}

fn bind_source(
    mount: &Mount,
    i: usize,
    options: &[String],
    bundle: &Path,
) -> Result<MountSource, BundleError> {
    let field = format!("mounts[{i}].source");
    let source = mount
        .source()
        .as_ref()
        .filter(|source| !source.as_os_str().is_empty());
    let Some(source) = source else {
        return Err(refused(&field, "\"\"", "a bind mount has a source"));
    };
    if source.to_string_lossy().contains('\0') {
        return Err(refused(
            &field,
            &format!("{source:?}"),
            "it contains a zero byte",
        ));
    }
    Ok(MountSource::Bind {
        path: bundle.join(source),
        recursive: !options.iter().any(|option| option == "bind"),
    })
}

/// Parameters of the file system; flags are the tree's own decision but for `noexec`.
fn tmpfs_options(options: &[String], i: usize) -> Result<TmpfsOptions, BundleError> {
    let mut tmpfs = TmpfsOptions::default();
    for option in options {
        match option.split_once('=') {
            Some((key @ ("size" | "nr_blocks" | "nr_inodes" | "mode" | "uid" | "gid"), value)) => {
                tmpfs.parameters.push((key.to_owned(), value.to_owned()));
            }
            // Where memory comes from, and whether it is huge, is the host's business.
            Some(("mpol" | "huge", _)) => {}
            Some(_) => {
                let field = format!("mounts[{i}].options");
                return Err(refused(
                    &field,
                    &format!("{option:?}"),
                    "tmpfs has no such option",
                ));
            }
            None if option == "noexec" => tmpfs.no_exec = true,
            None if option == "exec" => tmpfs.no_exec = false,
            None => {}
        }
    }
    Ok(tmpfs)
}

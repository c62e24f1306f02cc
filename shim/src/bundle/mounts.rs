//! The spec's mounts: which of them enter the tree, and in which form.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::fields::refused;
use super::{AccessTimes, BundleError, MountSource, TmpfsOptions, TreeMount, paths};

/// Most mounts of one task.
const MOUNTS_MAX: usize = 1024;

/// Types of file systems of the kernel's own: the guest has its own, or none.
const GUEST_OWN_TYPES: [&str; 7] = [
    "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "devtmpfs",
];

/// Mount point of mqueue, which `--ipc host` binds from the host.
const QUEUES: &str = "/dev/mqueue";

/// The mounts of a spec, sorted by what serves them.
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
        check_options(options, i)?;
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

/// Why no mount propagates: a proc that a process of the host mounts below a propagated source would be served as a
/// file system of the tenant's.
const NO_PROPAGATION: &str = "a mount made later on the host never enters the task's tree; use rprivate \
     (in Kubernetes mountPropagation: None)";

/// Refuses options that promise what the tree does not do.
fn check_options(options: &[String], i: usize) -> Result<(), BundleError> {
    for option in options {
        let reason = match option.as_str() {
            option if propagates(option) => NO_PROPAGATION,
            "nosymfollow" => {
                "symbolic links are followed in the guest, which does not know the mount's flags"
            }
            "idmap" | "ridmap" => "id mappings are not supported",
            _ => continue,
        };
        let field = format!("mounts[{i}].options");
        return Err(refused(&field, &format!("{option:?}"), reason));
    }
    Ok(())
}

fn propagates(option: &str) -> bool {
    matches!(option, "shared" | "rshared" | "slave" | "rslave")
}

/// Checks `linux.rootfsPropagation`: private in one of its forms, or absent.
pub(super) fn check_root_propagation(given: Option<String>) -> Result<(), BundleError> {
    let given = given.unwrap_or_default();
    let reason = match given.as_str() {
        "" | "private" | "rprivate" | "unbindable" | "runbindable" => return Ok(()),
        given if propagates(given) => NO_PROPAGATION,
        _ => "there is no such propagation",
    };
    Err(refused(
        "linux.rootfsPropagation",
        &format!("{given:?}"),
        reason,
    ))
}

/// Whether the mount is a bind: by the option, as runc decides, whatever the type says.
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

/// A mount's place: absolute (older specs allow relative ones: from the root), cleaned, not the root itself.
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

/// Parameters of the file system, and flags of its mount. `nosuid` and `nodev` hold for everything that enters the
/// tree; propagation was checked before.
fn tmpfs_options(options: &[String], i: usize) -> Result<TmpfsOptions, BundleError> {
    let mut tmpfs = TmpfsOptions::default();
    for option in options {
        match option.split_once('=') {
            Some((key @ ("size" | "nr_blocks" | "nr_inodes" | "mode" | "uid" | "gid"), value))
                if !value.is_empty() =>
            {
                tmpfs.parameters.push((key.to_owned(), value.to_owned()));
            }
            // Where memory comes from, and whether it is huge, is the host's business.
            Some(("mpol" | "huge", _)) => {}
            None if tmpfs_flag(option, &mut tmpfs) => {}
            _ => {
                let field = format!("mounts[{i}].options");
                return Err(refused(
                    &field,
                    &format!("{option:?}"),
                    "tmpfs has no such option",
                ));
            }
        }
    }
    Ok(tmpfs)
}

/// Takes over a flag; false when a tmpfs has no such flag.
fn tmpfs_flag(option: &str, tmpfs: &mut TmpfsOptions) -> bool {
    match option {
        "noexec" => tmpfs.no_exec = true,
        "exec" => tmpfs.no_exec = false,
        "tmpcopyup" => tmpfs.copy_up = true,
        "noatime" => tmpfs.access_times = AccessTimes::Never,
        "strictatime" => tmpfs.access_times = AccessTimes::Always,
        "atime" | "relatime" | "norelatime" | "nostrictatime" => {
            tmpfs.access_times = AccessTimes::Relative;
        }
        // A parameter without a value: Linux 6.4 and later.
        "noswap" => tmpfs.parameters.push((option.to_owned(), String::new())),
        "nodiratime" => tmpfs.no_directory_times = true,
        "diratime" => tmpfs.no_directory_times = false,
        // Nothing is kept that could be lost, and inode numbers are the guest's to choose.
        "sync" | "async" | "dirsync" | "inode32" | "inode64" => {}
        "defaults" | "ro" | "rw" | "rro" | "nosuid" | "suid" | "nodev" | "dev" | "mand"
        | "nomand" | "iversion" | "noiversion" | "silent" | "loud" => {}
        "private" | "rprivate" | "unbindable" | "runbindable" => {}
        _ => return false,
    }
    true
}

//! The parts of a spec that confine a program beyond its limits: sysctls, masked paths, labels.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Process;
use serde_json::Value;

use super::document::list;
use super::fields::{quoted, refused};
use super::{BundleError, Labels, Network, Sysctl};

/// Most paths in one list. Some clients name one for every processor of the host.
const PATHS_MAX: usize = 16_384;
/// Longest label, bytes; both together fit one message to the VMM.
const LABEL_BYTES_MAX: usize = 1024;
/// AppArmor's name for no profile at all.
const UNCONFINED: &str = "unconfined";
/// The SELinux type of a process that is a VM, as CRI gives it to those of Kata.
const VM_TYPE: &str = "container_kvm_t";

/// Most sysctls of one task.
const SYSCTLS_MAX: usize = 256;
/// Longest value of a sysctl, bytes: the kernel takes one page.
const SYSCTL_BYTES_MAX: usize = 4096;

/// `linux.sysctl`: settings of a network namespace that is the task's own. A namespace's other settings
/// (`kernel.shm*`, `kernel.msg*`, `fs.mqueue.*`) are about IPC that no Wasm program can reach, and settings of
/// the whole host are not a task's to change.
pub(super) fn sysctls(
    given: Option<BTreeMap<String, String>>,
    network: &Network,
) -> Result<Vec<Sysctl>, BundleError> {
    let given = given.unwrap_or_default();
    if given.len() > SYSCTLS_MAX {
        let reason = format!("at most {SYSCTLS_MAX} are supported");
        return Err(refused(
            "linux.sysctl",
            &format!("{} entries", given.len()),
            &reason,
        ));
    }
    given
        .into_iter()
        .map(|(name, value)| sysctl(name, value, network))
        .collect()
}

fn sysctl(name: String, value: String, network: &Network) -> Result<Sysctl, BundleError> {
    let refuse = |reason: &str| {
        let field = format!("linux.sysctl[{name:?}]");
        Err(refused(&field, &format!("{value:?}"), reason))
    };
    let Some(path) = sysctl_path(&name) else {
        return refuse("this is not the name of a sysctl");
    };
    if !path.starts_with("net") {
        return refuse(
            "only net.* can be set: nothing else of a namespace reaches a Wasm program in its VM",
        );
    }
    if *network == Network::Host {
        return refuse("the network namespace is the host's own; give the task one of its own");
    }
    if value.len() > SYSCTL_BYTES_MAX || value.contains('\0') {
        return refuse("a value has at most 4096 bytes, none of them zero");
    }
    Ok(Sysctl { name, path, value })
}

/// The path of a sysctl's name, as sysctl(8) has it: the first separator, `.` or `/`, is the one between
/// directories, and the other stands for itself or its counterpart within a name
/// (`net/ipv4/conf/eth0.1/forwarding`).
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let by_dots = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('.'));
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if by_dots {
        name.chars().map(swapped).collect()
    } else {
        name.to_owned()
    };
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let has_directory = Path::new(&path).components().count() > 1;
    (has_directory && path.split('/').all(plain)).then(|| path.into())
}

/// Reads `linux.maskedPaths` or `linux.readonlyPaths`.
pub(super) fn paths(field: &str, document: &Value) -> Result<Vec<PathBuf>, BundleError> {
    let given: Vec<PathBuf> = list(document, field)?;
    if given.len() > PATHS_MAX {
        let reason = format!("at most {PATHS_MAX} paths are supported");
        return Err(refused(field, &format!("{} paths", given.len()), &reason));
    }
    for (i, path) in given.iter().enumerate() {
        let is_root = || {
            path.components()
                .all(|part| !matches!(part, Component::Normal(_)))
        };
        let reason = match path {
            path if !path.is_absolute() => "the path must be absolute",
            path if path.to_string_lossy().contains('\0') => "it contains a zero byte",
            _ if is_root() => "the root itself cannot be; see root.readonly",
            _ => continue,
        };
        return Err(refused(
            &format!("{field}[{i}]"),
            &format!("{path:?}"),
            reason,
        ));
    }
    Ok(given)
}

/// Reads the labels of process and mounts. An empty string is no label.
pub(super) fn labels(process: &Process, mount: Option<String>) -> Result<Labels, BundleError> {
    let profile = process.apparmor_profile().clone();
    let label = checked("process.selinuxLabel", process.selinux_label().clone())?;
    Ok(Labels {
        apparmor_profile: checked("process.apparmorProfile", profile)?
            .filter(|profile| profile != UNCONFINED),
        selinux_process: label.map(|label| vm_label(&label)).transpose()?,
        selinux_mount: checked("linux.mountLabel", mount)?,
    })
}

fn checked(field: &str, label: Option<String>) -> Result<Option<String>, BundleError> {
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    if label.len() > LABEL_BYTES_MAX || label.contains(|c: char| c.is_control() || c == '"') {
        let reason = format!(
            "a label has at most {LABEL_BYTES_MAX} bytes, none of them a quote or a control"
        );
        return Err(refused(field, &quoted(&Value::from(label)), &reason));
    }
    Ok(Some(label))
}

/// The label with the type of a VM, in the form `user:role:type:level`; user, role and level, so the categories, are
/// kept.
fn vm_label(label: &str) -> Result<String, BundleError> {
    let parts: Vec<&str> = label.splitn(4, ':').collect();
    match parts[..] {
        [user, role, _, level] => Ok(format!("{user}:{role}:{VM_TYPE}:{level}")),
        [user, role, _] => Ok(format!("{user}:{role}:{VM_TYPE}")),
        _ => {
            let reason = "a label has the form user:role:type:level";
            let quoted = quoted(&Value::from(label));
            Err(refused("process.selinuxLabel", &quoted, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_gets_the_type_of_a_vm_and_keeps_its_categories() {
        for (label, of_vm) in [
            (
                "system_u:system_r:container_t:s0:c1,c2",
                "system_u:system_r:container_kvm_t:s0:c1,c2",
            ),
            (
                "u:r:spc_t:s0-s0:c0.c1023",
                "u:r:container_kvm_t:s0-s0:c0.c1023",
            ),
            ("u:r:t", "u:r:container_kvm_t"),
        ] {
            assert_eq!(vm_label(label).unwrap(), of_vm);
        }
        let error = vm_label("container_t").unwrap_err().to_string();
        assert!(
            error.contains("process.selinuxLabel = \"container_t\""),
            "{error}"
        );
    }

    #[test]
    fn a_sysctls_name_is_its_path_either_way() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
        ] {
            assert_eq!(sysctl_path(name).unwrap(), Path::new(path), "{name}");
        }
    }

    #[test]
    fn a_sysctls_name_leads_nowhere_else() {
        for name in [
            "",
            "net",
            "net.",
            ".net.x",
            "net..x",
            "net/../kernel/core_pattern",
            "/net/x",
            "net.//.kernel.core_pattern",
            "net/./x",
            "net.a\0.b",
        ] {
            assert_eq!(sysctl_path(name), None, "{name:?}");
        }
    }
}

//! Every field of the OCI runtime specification (1.2, and 1.3 where containerd already sends it), and
//! what becomes of it.
//!
//! A path names one field: `[]` stands for every element of a list. A field below a named one shares
//! its fate. A value that says nothing (`null`, `false`, an empty string, list or object) is never
//! refused. Fields not in the table are unknown: the specification says they must be ignored.

use serde_json::Value;

use super::BundleError;
use super::error::CONFIG;

/// Longest value quoted in an error, characters.
const QUOTED_CHARS_MAX: usize = 80;

/// Effect of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Taken over into the `TaskSpec`.
    Honoured,
    /// Accepted without effect, because it means nothing to a Wasm program in its own VM.
    Ignored,
    /// Accepted without effect, because something of ours does its work always: this sentence says which.
    Replaced(&'static str),
    /// An error, unless the value says nothing; this sentence is the reason.
    Refused(&'static str),
}

use Fate::{Honoured, Ignored, Refused, Replaced};

const NO_GUEST_HOOKS: &str = "the task's namespaces hold no program but the VM: drop the device that brings the hook along \
    (CDI: --gpus, --device, a pod's device resources), as no device of the host reaches a guest, or use \
    hooks.createRuntime or hooks.poststart";
const NO_USERNS: &str = "the VM itself separates users, so id mappings are not supported: leave out a pod's hostUsers: false, \
    or the client's --userns and --userns-remap";
const OTHER_PLATFORM: &str = "wasmvm runs WebAssembly on Linux hosts only";

const OWN_LIMITS: &str =
    "a program makes neither processes nor descriptors of the host; the VMM has limits of its own";
const ALWAYS_SET: &str = "no_new_privs is set always, for the runner and for the VMM";
const OWN_DEVICES: &str =
    "no device of the host is in reach; the guest's /dev has null, zero, full, random and urandom";
const OWN_FILTERS: &str = "a program's system calls end in the guest's kernel; each thread of the VMM has a filter of \
     its own";
const SWAP_BOUNDED: &str =
    "the host's own value; how much is swapped is bounded by linux.resources.memory.swap";
const NO_HUGETLB: &str = "the VMM takes no page of hugetlbfs";
const NO_SOCKET: &str = "the VMM makes no socket, so there is no traffic to mark";
const NO_RDMA: &str = "no RDMA device is in reach";
const USE_UNIFIED: &str =
    "set the file of cgroup v2 instead, as in linux.resources.unified[\"io.max\"]";

/// The table. One line a field, in the order of the specification's own documents.
pub(super) const FIELDS: &[(&str, Fate)] = &[
    // config.md
    ("ociVersion", Honoured),
    ("root.path", Honoured),
    ("root.readonly", Honoured),
    ("mounts[].destination", Honoured),
    ("mounts[].type", Honoured),
    ("mounts[].source", Honoured),
    ("mounts[].options", Honoured),
    ("mounts[].uidMappings", Refused(NO_USERNS)),
    ("mounts[].gidMappings", Refused(NO_USERNS)),
    // Create and Exec have a field of their own for it, which counts.
    ("process.terminal", Ignored),
    ("process.consoleSize", Ignored),
    ("process.cwd", Honoured),
    ("process.env", Honoured),
    ("process.args", Honoured),
    ("process.commandLine", Refused(OTHER_PLATFORM)),
    ("process.rlimits", Replaced(OWN_LIMITS)),
    ("process.apparmorProfile", Honoured),
    ("process.capabilities", Honoured),
    ("process.noNewPrivileges", Replaced(ALWAYS_SET)),
    ("process.oomScoreAdj", Honoured),
    ("process.scheduler", Ignored),
    ("process.selinuxLabel", Honoured),
    ("process.ioPriority", Ignored),
    ("process.execCPUAffinity", Ignored),
    ("process.user.uid", Honoured),
    ("process.user.gid", Honoured),
    ("process.user.umask", Honoured),
    ("process.user.additionalGids", Honoured),
    ("process.user.username", Ignored),
    ("hostname", Honoured),
    ("domainname", Ignored),
    ("hooks.prestart", Honoured),
    ("hooks.createRuntime", Honoured),
    ("hooks.createContainer", Refused(NO_GUEST_HOOKS)),
    ("hooks.startContainer", Refused(NO_GUEST_HOOKS)),
    ("hooks.poststart", Honoured),
    ("hooks.poststop", Honoured),
    ("annotations", Honoured),
    // config-linux.md
    ("linux.namespaces[].type", Honoured),
    ("linux.namespaces[].path", Honoured),
    ("linux.uidMappings", Refused(NO_USERNS)),
    ("linux.gidMappings", Refused(NO_USERNS)),
    (
        "linux.timeOffsets",
        Refused("the guest's clocks cannot be shifted"),
    ),
    ("linux.devices", Replaced(OWN_DEVICES)),
    (
        "linux.netDevices",
        Refused("the guest has no network devices"),
    ),
    ("linux.cgroupsPath", Honoured),
    ("linux.resources.memory.limit", Honoured),
    ("linux.resources.memory.reservation", Ignored),
    ("linux.resources.memory.swap", Honoured),
    ("linux.resources.memory.kernel", Ignored),
    ("linux.resources.memory.kernelTCP", Ignored),
    ("linux.resources.memory.swappiness", Replaced(SWAP_BOUNDED)),
    ("linux.resources.memory.disableOOMKiller", Ignored),
    ("linux.resources.memory.useHierarchy", Ignored),
    ("linux.resources.memory.checkBeforeUpdate", Ignored),
    ("linux.resources.devices", Replaced(OWN_DEVICES)),
    ("linux.resources.cpu.shares", Honoured),
    ("linux.resources.cpu.quota", Honoured),
    ("linux.resources.cpu.period", Honoured),
    ("linux.resources.cpu.cpus", Honoured),
    ("linux.resources.cpu.mems", Honoured),
    ("linux.resources.cpu.burst", Ignored),
    ("linux.resources.cpu.realtimeRuntime", Ignored),
    ("linux.resources.cpu.realtimePeriod", Ignored),
    ("linux.resources.cpu.idle", Ignored),
    ("linux.resources.pids.limit", Honoured),
    ("linux.resources.blockIO", Refused(USE_UNIFIED)),
    ("linux.resources.hugepageLimits", Replaced(NO_HUGETLB)),
    ("linux.resources.network", Replaced(NO_SOCKET)),
    ("linux.resources.rdma", Replaced(NO_RDMA)),
    ("linux.resources.unified", Honoured),
    (
        "linux.intelRdt",
        Refused("a VM joins no group of resctrl; leave the RDT class unset"),
    ),
    ("linux.memoryPolicy", Ignored),
    // Those of the network namespace; every other name is refused.
    ("linux.sysctl", Honoured),
    ("linux.seccomp", Replaced(OWN_FILTERS)),
    // Private only: a mount made later on the host never enters the tree.
    ("linux.rootfsPropagation", Honoured),
    ("linux.maskedPaths", Honoured),
    ("linux.readonlyPaths", Honoured),
    ("linux.mountLabel", Honoured),
    ("linux.personality", Ignored),
    // Other platforms and the VM of the specification's own kind.
    ("solaris", Refused(OTHER_PLATFORM)),
    ("windows", Refused(OTHER_PLATFORM)),
    ("zos", Refused(OTHER_PLATFORM)),
    (
        "vm",
        Refused("the VM is wasmvm's own and not configured by the spec"),
    ),
];

/// Names of the hooks that run, in the order in which they do.
pub(crate) fn honoured_hooks() -> Vec<&'static str> {
    let honoured = FIELDS.iter().filter(|(_, fate)| *fate == Honoured);
    honoured
        .filter_map(|(path, _)| path.strip_prefix("hooks."))
        .collect()
}

/// A field that has no effect, and its path in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unused {
    /// Path of the field, such as `linux.resources.cpu.idle` or `mounts[3].foo`.
    pub path: String,
    /// Whether the table has the field, as ignored or replaced; otherwise the field is unknown.
    pub known: bool,
}

/// Checks every field against the table, and takes out those that have no effect.
///
/// # Errors
/// [`BundleError::Refused`] for the first refused field that says something.
pub(super) fn filter_fields(document: &mut Value) -> Result<Vec<Unused>, BundleError> {
    let mut unused = Vec::new();
    sift_below(document, "", "", &mut unused)?;
    Ok(unused)
}

/// Checks the fields below one. `pattern` is the path as the table writes it, `path` as the reader wants it.
fn sift_below(
    value: &mut Value,
    pattern: &str,
    path: &str,
    unused: &mut Vec<Unused>,
) -> Result<(), BundleError> {
    match value {
        Value::Object(members) => {
            let mut dropped = Vec::new();
            for (name, member) in members.iter_mut() {
                let pattern = join(pattern, name);
                let path = join(path, name);
                if !sift_one(member, &pattern, &path, unused)? {
                    dropped.push(name.clone());
                }
            }
            members.retain(|name, _| !dropped.contains(name));
            Ok(())
        }
        Value::Array(elements) => {
            let pattern = format!("{pattern}[]");
            elements
                .iter_mut()
                .enumerate()
                .try_for_each(|(i, element)| {
                    sift_below(element, &pattern, &format!("{path}[{i}]"), unused)
                })
        }
        // Neither object nor list where one is due: the typed parser says so.
        _ => Ok(()),
    }
}

/// Whether the field stays in the document.
fn sift_one(
    value: &mut Value,
    pattern: &str,
    path: &str,
    unused: &mut Vec<Unused>,
) -> Result<bool, BundleError> {
    match fate(pattern) {
        Some(Honoured) => Ok(true),
        Some(Ignored | Replaced(_)) => {
            if !says_nothing(value) {
                unused.push(Unused {
                    path: path.to_owned(),
                    known: true,
                });
            }
            Ok(false)
        }
        Some(Refused(reason)) if says_nothing(value) => {
            tracing::trace!(field = path, reason, "empty, so not refused");
            Ok(false)
        }
        Some(Refused(reason)) => Err(refused(path, &quoted(value), reason)),
        None if is_parent(pattern) => {
            sift_below(value, pattern, path, unused)?;
            Ok(true)
        }
        None => {
            unused.push(Unused {
                path: path.to_owned(),
                known: false,
            });
            Ok(false)
        }
    }
}

fn fate(pattern: &str) -> Option<Fate> {
    FIELDS
        .iter()
        .find(|(name, _)| *name == pattern)
        .map(|(_, fate)| *fate)
}

/// Whether the table has fields below this one.
fn is_parent(pattern: &str) -> bool {
    FIELDS.iter().any(|(name, _)| {
        name.strip_prefix(pattern)
            .is_some_and(|rest| rest.starts_with(['.', '[']))
    })
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.values().all(says_nothing),
    }
}

/// The error for a field at `path` with `value`, already quoted.
pub(super) fn refused(path: &str, value: &str, reason: &str) -> BundleError {
    BundleError::Refused {
        document: CONFIG,
        field: path.to_owned(),
        value: value.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The value in JSON, shortened.
pub(super) fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

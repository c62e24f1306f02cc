//! From `config.json` to a [`TaskSpec`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Root};
use serde_json::Value;

use super::document::{filter_fields, list, missing, section};
use super::error::CONFIG;
use super::fields::{self, refused};
use super::{
    BundleError, Capabilities, Network, ProcessSpec, Resources, TaskSpec, confine, hooks, mounts,
};
use crate::bounded_file;

/// Largest `config.json`, bytes. Those of ctr and CRI have some ten thousand.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Longest host name, bytes (`HOST_NAME_MAX`).
const HOSTNAME_BYTES_MAX: usize = 64;

impl TaskSpec {
    /// Reads the bundle's `config.json`. `bundle` is absolute.
    ///
    /// # Errors
    /// [`BundleError`], with the field and its value.
    pub(crate) fn load(bundle: &Path) -> Result<Self, BundleError> {
        let path = bundle.join(CONFIG);
        let spec = Self::parse(&read_config(&path)?, &path, bundle)?;
        check_rootfs(&spec.rootfs)?;
        Ok(spec)
    }

    /// Reads a document. `path` is named in errors; relative paths in the document start at `bundle`.
    pub(super) fn parse(bytes: &[u8], path: &Path, bundle: &Path) -> Result<Self, BundleError> {
        let parse = |source| BundleError::Parse {
            path: path.to_owned(),
            source,
        };
        let mut document: Value = serde_json::from_slice(bytes).map_err(parse)?;
        if !document.is_object() {
            return Err(BundleError::Shape {
                path: path.to_owned(),
            });
        }
        filter_fields(&mut document, CONFIG)?;
        // A container without the section has no capabilities, as under runc.
        let capabilities = Capabilities::take(&mut document)?.unwrap_or_default();
        Self::from_document(&document, bundle, capabilities)
    }

    fn from_document(
        document: &Value,
        bundle: &Path,
        capabilities: Capabilities,
    ) -> Result<Self, BundleError> {
        let oci_version = version(document)?;
        let process: Process = section(document, "process")?
            .ok_or_else(|| missing("process", "there is no program to run"))?;
        let root: Root = section(document, "root")?.unwrap_or_else(no_root);
        if root.path().as_os_str().is_empty() {
            return Err(missing(
                "root.path",
                "the program is looked up in a root directory",
            ));
        }
        if root.path() == Path::new("/") {
            let reason = "the host's own root cannot be a task's; name a directory below it";
            return Err(refused("root.path", "\"/\"", reason));
        }
        let resources: LinuxResources = section(document, "linux.resources")?.unwrap_or_default();
        let resources = Resources::of_task(&resources)?;
        let mounts = mounts::convert(&list(document, "mounts")?, bundle)?;
        let annotations = section(document, "annotations")?.unwrap_or_else(BTreeMap::new);
        let network = network(&list(document, "linux.namespaces")?)?;
        mounts::check_root_propagation(section(document, "linux.rootfsPropagation")?)?;
        Ok(Self {
            oci_version,
            process: ProcessSpec::from_oci(&process, Some(capabilities))?,
            hostname: hostname(document)?,
            resources,
            cgroup_path: section(document, "linux.cgroupsPath")?
                .filter(|path: &String| !path.is_empty()),
            oom_score_adj: oom_score_adj(&process)?,
            sysctls: confine::sysctls(section(document, "linux.sysctl")?, &network)?,
            network,
            mounts: mounts.tree,
            masked_paths: confine::paths("linux.maskedPaths", document)?,
            readonly_paths: confine::paths("linux.readonlyPaths", document)?,
            labels: confine::labels(&process, section(document, "linux.mountLabel")?)?,
            guest_dev: mounts.guest_dev,
            guest_proc: mounts.guest_proc,
            preopen_cwd: preopen_cwd(&annotations)?,
            rootfs: bundle.join(root.path()),
            rootfs_readonly: root.readonly().unwrap_or(false),
            hooks: hooks::parse(document)?,
            annotations,
        })
    }
}

/// The annotation by which a container of an old preview 1 module asks for the preopened directory `.`.
const PREOPEN_CWD: &str = "io.wasmvm.preopen-cwd";

fn preopen_cwd(annotations: &BTreeMap<String, String>) -> Result<bool, BundleError> {
    match annotations.get(PREOPEN_CWD).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(refused(
            &format!("annotations[{PREOPEN_CWD:?}]"),
            &format!("{other:?}"),
            "it is either \"true\" or \"false\"",
        )),
    }
}

pub(super) fn read_config(path: &Path) -> Result<Vec<u8>, BundleError> {
    let read = bounded_file::read(path, CONFIG_BYTES_MAX);
    let bytes = read.map_err(|source| BundleError::Read {
        path: path.to_owned(),
        source,
    })?;
    bytes.ok_or_else(|| BundleError::TooLong {
        path: path.to_owned(),
        bytes_max: CONFIG_BYTES_MAX,
    })
}

/// A root for a document without a `root` section; `Root::default()` would name a directory.
fn no_root() -> Root {
    let mut root = Root::default();
    root.set_path(PathBuf::new());
    root
}

fn version(document: &Value) -> Result<String, BundleError> {
    let version: String = section(document, "ociVersion")?.unwrap_or_default();
    if version.starts_with("1.") {
        return Ok(version);
    }
    let reason = "version 1 of the OCI runtime specification is supported";
    Err(refused("ociVersion", &format!("{version:?}"), reason))
}

fn check_rootfs(path: &Path) -> Result<(), BundleError> {
    let source = match path.metadata() {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => io::ErrorKind::NotADirectory.into(),
        Err(source) => source,
    };
    Err(BundleError::Rootfs {
        path: path.to_owned(),
        source,
    })
}

fn hostname(document: &Value) -> Result<String, BundleError> {
    let hostname: String = section(document, "hostname")?.unwrap_or_default();
    if hostname.len() > HOSTNAME_BYTES_MAX || hostname.contains('\0') {
        let quoted = fields::quoted(&Value::from(hostname));
        let reason =
            format!("a host name has at most {HOSTNAME_BYTES_MAX} bytes, none of them zero");
        return Err(refused("hostname", &quoted, &reason));
    }
    Ok(hostname)
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, BundleError> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            let reason = "the score lies between -1000 and 1000";
            Err(refused("process.oomScoreAdj", &score.to_string(), reason))
        }
        score => Ok(score),
    }
}

/// Of the namespaces only the network's has a meaning: the others are the VM's own in any case, and cannot be
/// shared with others.
fn network(namespaces: &[LinuxNamespace]) -> Result<Network, BundleError> {
    let mut network = Network::Host;
    for (i, namespace) in namespaces.iter().enumerate() {
        let path = namespace
            .path()
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        if namespace.typ() == LinuxNamespaceType::User {
            let field = format!("linux.namespaces[{i}].type");
            let reason = "the VM itself separates users, so user namespaces are not supported: leave out a pod's \
                hostUsers: false, or the client's --userns and --userns-remap";
            return Err(refused(&field, "\"user\"", reason));
        }
        if let Some(path) = path {
            check_joined(namespace.typ(), path, i)?;
        }
        if namespace.typ() == LinuxNamespaceType::Network {
            network = path.map_or(Network::New, |path| Network::Path(path.clone()));
        }
    }
    Ok(network)
}

/// Checks a namespace by path, which other processes are in. The IPC and UTS namespaces of a pod are named in every
/// spec of CRI; no program can reach the IPC namespace, and the UTS namespace's host name stands in the spec.
fn check_joined(kind: LinuxNamespaceType, path: &Path, i: usize) -> Result<(), BundleError> {
    let reason = match kind {
        LinuxNamespaceType::Network if !path.is_absolute() => "the path must be absolute",
        LinuxNamespaceType::Pid => {
            "a VM shares its processes with no other container; leave shareProcessNamespace (or --pid) unset"
        }
        LinuxNamespaceType::Mount => "the mounts of another container cannot be joined",
        LinuxNamespaceType::Time => "the guest's clocks cannot be shifted",
        _ => return Ok(()),
    };
    let field = format!("linux.namespaces[{i}].path");
    Err(refused(&field, &format!("{path:?}"), reason))
}

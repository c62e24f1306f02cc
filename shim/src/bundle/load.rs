//! From `config.json` to a [`TaskSpec`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Root};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fields::{self, refused};
use super::resources::Resources;
use super::{BundleError, Network, TaskSpec, User, hooks, mounts};

/// Largest `config.json`, bytes. Those of ctr and CRI have some ten thousand.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Longest arguments and environment together, bytes: Linux's own default for `execve(2)`, and half of
/// what one message to the agent may hold.
const ARGS_BYTES_MAX: usize = 2 << 20;
/// Longest host name, bytes (`HOST_NAME_MAX`).
const HOSTNAME_BYTES_MAX: usize = 64;

impl TaskSpec {
    /// Reads the bundle's `config.json`. `bundle` is absolute.
    ///
    /// # Errors
    /// [`BundleError`], with the field and its value.
    pub fn load(bundle: &Path) -> Result<Self, BundleError> {
        let path = bundle.join("config.json");
        let spec = Self::parse(&read_bounded(&path)?, &path, bundle)?;
        check_rootfs(&spec.rootfs)?;
        Ok(spec)
    }

    /// `path` is named in errors; relative paths in the document start at `bundle`.
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
        for unused in fields::sift(&mut document)? {
            let field = unused.path;
            if unused.known {
                tracing::debug!(field, "config.json: the field has no effect here");
            } else {
                tracing::warn!(field, "config.json: the field is unknown and ignored");
            }
        }
        Self::from_document(&document, bundle)
    }

    fn from_document(document: &Value, bundle: &Path) -> Result<Self, BundleError> {
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
        let resources: LinuxResources = section(document, "linux.resources")?.unwrap_or_default();
        let resources = Resources::new(&resources)?;
        let mounts = mounts::convert(&list(document, "mounts")?, bundle)?;
        let user = process.user();
        Ok(Self {
            oci_version,
            args: args(&process)?,
            env: env(&process)?,
            cwd: cwd(&process)?,
            user: User {
                uid: user.uid(),
                gid: user.gid(),
                additional_gids: user.additional_gids().clone().unwrap_or_default(),
            },
            hostname: hostname(document)?,
            memory_bytes_max: resources.memory_bytes_max,
            memory_swap_bytes_max: resources.memory_swap_bytes_max,
            cpu: resources.cpu,
            pids_max: resources.pids_max,
            cgroup_files: resources.cgroup_files,
            cgroup_path: section(document, "linux.cgroupsPath")?
                .filter(|path: &String| !path.is_empty()),
            oom_score_adj: oom_score_adj(&process)?,
            network: network(&list(document, "linux.namespaces")?)?,
            mounts: mounts.tree,
            guest_dev: mounts.guest_dev,
            rootfs: bundle.join(root.path()),
            rootfs_readonly: root.readonly().unwrap_or(false),
            hooks: hooks::parse(document)?,
            annotations: section(document, "annotations")?.unwrap_or_else(BTreeMap::new),
        })
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| BundleError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(BundleError::TooLong {
            path: path.to_owned(),
            bytes_max: CONFIG_BYTES_MAX,
        });
    }
    Ok(bytes)
}

/// The part of the document at a dotted path, typed; `None` when it is absent or `null`.
fn section<T: DeserializeOwned>(document: &Value, field: &str) -> Result<Option<T>, BundleError> {
    let found = field
        .split('.')
        .try_fold(document, |value, name| value.get(name));
    match found {
        None | Some(Value::Null) => Ok(None),
        Some(value) => typed(value, field).map(Some),
    }
}

/// A list, element by element, so that an error names the one that is wrong.
pub(super) fn list<T: DeserializeOwned>(
    document: &Value,
    field: &str,
) -> Result<Vec<T>, BundleError> {
    let elements: Vec<Value> = section(document, field)?.unwrap_or_default();
    elements
        .iter()
        .enumerate()
        .map(|(i, element)| typed(element, &format!("{field}[{i}]")))
        .collect()
}

fn typed<T: DeserializeOwned>(value: &Value, field: &str) -> Result<T, BundleError> {
    T::deserialize(value).map_err(|source| BundleError::Type {
        field: field.to_owned(),
        source,
    })
}

fn missing(field: &'static str, reason: &'static str) -> BundleError {
    BundleError::Missing { field, reason }
}

/// Without a `root` section; `Root::default()` would name a directory.
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

fn args(process: &Process) -> Result<Vec<String>, BundleError> {
    let args = process.args().clone().unwrap_or_default();
    match args.first() {
        None => return Err(missing("process.args", "there is no program to run")),
        Some(program) if program.is_empty() => {
            return Err(refused(
                "process.args[0]",
                "\"\"",
                "the program has no name",
            ));
        }
        Some(_) => {}
    }
    check_strings("process.args", &args)?;
    let env = process.env().as_deref().unwrap_or_default();
    let bytes: usize = args.iter().chain(env).map(|text| text.len() + 1).sum();
    if bytes > ARGS_BYTES_MAX {
        let reason = format!("arguments and environment may have {ARGS_BYTES_MAX} bytes together");
        return Err(refused("process.args", &format!("{bytes} bytes"), &reason));
    }
    Ok(args)
}

fn env(process: &Process) -> Result<Vec<String>, BundleError> {
    let env = process.env().clone().unwrap_or_default();
    check_strings("process.env", &env)?;
    for (i, entry) in env.iter().enumerate() {
        if entry.find('=').is_none_or(|at| at == 0) {
            let reason = "an environment entry has the form NAME=value";
            return Err(refused(
                &format!("process.env[{i}]"),
                &format!("{entry:?}"),
                reason,
            ));
        }
    }
    Ok(env)
}

fn check_strings(field: &str, texts: &[String]) -> Result<(), BundleError> {
    match texts.iter().position(|text| text.contains('\0')) {
        None => Ok(()),
        Some(i) => {
            let quoted = fields::quoted(&Value::from(texts[i].as_str()));
            Err(refused(
                &format!("{field}[{i}]"),
                &quoted,
                "it contains a zero byte",
            ))
        }
    }
}

fn cwd(process: &Process) -> Result<PathBuf, BundleError> {
    let cwd = process.cwd();
    if !cwd.is_absolute() || cwd.to_string_lossy().contains('\0') {
        let quoted = format!("{cwd:?}");
        return Err(refused(
            "process.cwd",
            &quoted,
            "the working directory must be absolute",
        ));
    }
    Ok(cwd.clone())
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

/// Of the namespaces only the network's has a meaning: the others are the VM's own in any case.
fn network(namespaces: &[LinuxNamespace]) -> Result<Network, BundleError> {
    let mut network = Network::Host;
    for (i, namespace) in namespaces.iter().enumerate() {
        let path = namespace
            .path()
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        match (namespace.typ(), path) {
            (LinuxNamespaceType::User, _) => {
                let reason = "the VM itself separates users; user namespaces are not supported";
                return Err(refused(
                    &format!("linux.namespaces[{i}].type"),
                    "\"user\"",
                    reason,
                ));
            }
            (LinuxNamespaceType::Network, None) => network = Network::New,
            (LinuxNamespaceType::Network, Some(path)) if path.is_absolute() => {
                network = Network::Path(path.clone());
            }
            (LinuxNamespaceType::Network, Some(path)) => {
                let field = format!("linux.namespaces[{i}].path");
                return Err(refused(
                    &field,
                    &format!("{path:?}"),
                    "the path must be absolute",
                ));
            }
            _ => {}
        }
    }
    Ok(network)
}

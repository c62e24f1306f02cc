//! From an OCI `process` to a [`ProcessSpec`]: the bundle's own, or the spec of an exec.

use std::collections::BTreeSet;
use std::path::PathBuf;

use oci_spec::runtime::Process;
use serde_json::{Value, json};

use super::document::{filter_fields, missing, section};
use super::error::EXEC;
use super::fields::{self, refused};
use super::{BundleError, Capabilities, ProcessSpec, User, paths};

/// Type URL that containerd gives to the JSON of an exec's spec.
pub(crate) const PROCESS_TYPE_URL: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Longest arguments and environment together, bytes: Linux's own default for `execve(2)`, and half of
/// what one message to the agent may hold.
const ARGS_BYTES_MAX: usize = 2 << 20;

/// Largest umask: all permission bits.
const UMASK_MAX: u32 = 0o777;

impl ProcessSpec {
    /// Reads the spec of an exec, by the same table as a bundle's `process`.
    ///
    /// # Errors
    /// [`BundleError`], with the field and its value.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let process: Value =
            serde_json::from_slice(bytes).map_err(|source| BundleError::Parse {
                path: EXEC.into(),
                source,
            })?;
        let mut document = json!({ "process": process });
        let parsed = filter_fields(&mut document, EXEC).and_then(|()| {
            let capabilities = Capabilities::take(&mut document)?;
            let process = section(&document, "process")?;
            let process = process.ok_or_else(|| missing("process", "it is empty"))?;
            Self::from_oci(&process, capabilities)
        });
        parsed.map_err(BundleError::of_exec)
    }

    pub(super) fn from_oci(
        process: &Process,
        capabilities: Option<Capabilities>,
    ) -> Result<Self, BundleError> {
        let user = process.user();
        Ok(Self {
            args: args(process)?,
            env: env(process)?,
            cwd: cwd(process)?,
            user: User {
                uid: user.uid(),
                gid: user.gid(),
                additional_gids: user.additional_gids().clone().unwrap_or_default(),
                umask: umask(process)?,
            },
            capabilities,
        })
    }
}

fn umask(process: &Process) -> Result<Option<u32>, BundleError> {
    match process.user().umask() {
        Some(umask) if umask > UMASK_MAX => {
            let reason = "a umask lies between 0 and 511 (octal 777)";
            Err(refused("process.user.umask", &umask.to_string(), reason))
        }
        umask => Ok(umask),
    }
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
    Ok(last_of_each(env))
}

/// The entries with each name once: the last that was given, as under runc. libc would find the first.
fn last_of_each(env: Vec<String>) -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut kept: Vec<String> = Vec::with_capacity(env.len());
    for entry in env.into_iter().rev() {
        let name = entry.split('=').next().unwrap_or_default();
        if names.insert(name.to_owned()) {
            kept.push(entry);
        }
    }
    kept.reverse();
    kept
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
    Ok(paths::cleaned(cwd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Coded as _;
    use crate::error::{ErrorCode, chain};

    #[test]
    fn the_spec_of_an_exec_is_read_as_a_bundles_process() {
        let spec = json!({
            "args": ["echo", "a"], "env": ["A=b"], "cwd": "/x", "noNewPrivileges": true,
            "user": {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 63}, "terminal": true,
            "capabilities": {"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
        });
        let spec = ProcessSpec::parse(spec.to_string().as_bytes()).unwrap();
        assert_eq!(spec.args, ["echo", "a"]);
        assert_eq!(spec.env, ["A=b"]);
        assert_eq!(spec.cwd, PathBuf::from("/x"));
        let user = User {
            uid: 1,
            gid: 2,
            additional_gids: vec![3],
            umask: Some(0o077),
        };
        assert_eq!(spec.user, user);
        assert_eq!(spec.capabilities.map(|set| set.of_user(0)), Some(1));
    }

    #[test]
    fn of_two_equal_variables_the_last_counts() {
        let env = ["A=1", "B=", "A=2=x", "AB=3", "B=4", "A=5"];
        let spec = json!({"args": ["a"], "env": env, "cwd": "/", "user": {"uid": 0, "gid": 0}});
        let spec = ProcessSpec::parse(spec.to_string().as_bytes()).unwrap();
        assert_eq!(spec.env, ["AB=3", "B=4", "A=5"]);
    }

    #[test]
    fn what_is_wrong_is_said_of_the_exec() {
        let user = json!({"uid": 0, "gid": 0});
        for (spec, sentence) in [
            (
                json!({"args": [], "cwd": "/", "user": user}),
                "the spec of the exec: process.args is missing: there is no program to run",
            ),
            (
                json!({"args": ["a"], "cwd": "x", "user": user}),
                "the spec of the exec: process.cwd = \"x\" is refused: the working directory must be absolute",
            ),
            (
                json!({"args": 1, "cwd": "/", "user": user}),
                "the spec of the exec: process is not as the OCI specification has it: ",
            ),
            (
                Value::Null,
                "the spec of the exec: process is missing: it is empty",
            ),
            (
                json!({"args": ["a"], "cwd": "/", "user": user, "commandLine": "a"}),
                "the spec of the exec: process.commandLine = \"a\" is refused: wasmvm",
            ),
        ] {
            let error = ProcessSpec::parse(spec.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(chain(&error).starts_with(sentence), "{}", chain(&error));
        }
        let error = ProcessSpec::parse(b"{").unwrap_err();
        assert!(chain(&error).starts_with("the spec of the exec: not JSON"));
    }
}

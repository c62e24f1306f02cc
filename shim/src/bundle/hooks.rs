//! The spec's `hooks`: programs to run on the host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BundleError;
use super::document::list;
use super::fields::{quoted, refused};

/// Most bytes of all hooks together in JSON: the journal keeps them.
pub(super) const HOOKS_BYTES_MAX: usize = 256 * 1024;

/// A program to run, as `config.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    /// The absolute path of the program.
    pub path: PathBuf,
    /// The arguments, `args[0]` included; without any the path is the name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The whole environment of the hook, `KEY=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// The time limit, seconds; a hook that takes longer is killed and has failed.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// The hooks of a task, each list in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    /// Hooks by the older name of `create_runtime`; they run first.
    pub prestart: Vec<Hook>,
    /// Once the namespaces exist, before the program is loaded.
    pub create_runtime: Vec<Hook>,
    /// Once the program runs.
    pub poststart: Vec<Hook>,
    /// Once nothing of the task is left.
    pub poststop: Vec<Hook>,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In `Create`, before the hooks of `createRuntime`.
    Prestart,
    /// In `Create`, before the program is loaded.
    CreateRuntime,
    /// In `Start`, once the program runs.
    Poststart,
    /// In `Delete`, once nothing of the task is left.
    Poststop,
}

impl Stage {
    /// The field of `config.json`.
    #[must_use]
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::Prestart => "hooks.prestart",
            Self::CreateRuntime => "hooks.createRuntime",
            Self::Poststart => "hooks.poststart",
            Self::Poststop => "hooks.poststop",
        }
    }
}

/// Reads and checks the lists that are honoured.
pub(super) fn parse(document: &Value) -> Result<Hooks, BundleError> {
    let Some(hooks) = document.get("hooks") else {
        return Ok(Hooks::default());
    };
    let bytes = hooks.to_string().len();
    if bytes > HOOKS_BYTES_MAX {
        let reason = format!("hooks may have {HOOKS_BYTES_MAX} bytes");
        return Err(refused("hooks", &format!("{bytes} bytes"), &reason));
    }
    let hooks = Hooks {
        prestart: list(document, Stage::Prestart.field())?,
        create_runtime: list(document, Stage::CreateRuntime.field())?,
        poststart: list(document, Stage::Poststart.field())?,
        poststop: list(document, Stage::Poststop.field())?,
    };
    for (stage, hooks) in [
        (Stage::Prestart, &hooks.prestart),
        (Stage::CreateRuntime, &hooks.create_runtime),
        (Stage::Poststart, &hooks.poststart),
        (Stage::Poststop, &hooks.poststop),
    ] {
        for (i, hook) in hooks.iter().enumerate() {
            check(hook, &format!("{}[{i}]", stage.field()))?;
        }
    }
    Ok(hooks)
}

fn check(hook: &Hook, field: &str) -> Result<(), BundleError> {
    if !hook.path.is_absolute() {
        let value = format!("{:?}", hook.path);
        let reason = "the path of a hook must be absolute";
        return Err(refused(&format!("{field}.path"), &value, reason));
    }
    if hook.timeout == Some(0) {
        let reason = "a timeout is at least one second";
        return Err(refused(&format!("{field}.timeout"), "0", reason));
    }
    let path = hook.path.to_string_lossy();
    let strings = hook.args.iter().chain(&hook.env).map(String::as_str);
    if let Some(text) = strings.chain([&*path]).find(|text| text.contains('\0')) {
        let reason = "it contains a zero byte";
        return Err(refused(field, &quoted(&Value::from(text)), reason));
    }
    let named = |entry: &String| entry.find('=').is_some_and(|at| at > 0);
    match hook.env.iter().find(|entry| !named(entry)) {
        None => Ok(()),
        Some(entry) => {
            let reason = "an environment entry has the form NAME=value";
            let value = quoted(&Value::from(entry.as_str()));
            Err(refused(&format!("{field}.env"), &value, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hooks_are_read_and_named_when_they_are_wrong() {
        let hooks = json!({"hooks": {
            "createRuntime": [{"path": "/a"}, {"path": "/b", "args": ["b", "c"], "env": ["A=b"], "timeout": 2}],
            "poststop": null,
        }});
        let parsed = parse(&hooks).unwrap();
        assert_eq!((parsed.create_runtime.len(), parsed.poststop.len()), (2, 0));
        assert_eq!(parsed.create_runtime[1].timeout, Some(2));
        for (hook, start) in [
            (json!({"path": "a"}), ".path = \"a\" is refused"),
            (
                json!({"path": "/a", "timeout": 0}),
                ".timeout = 0 is refused",
            ),
            (
                json!({"path": "/a", "env": ["A"]}),
                ".env = \"A\" is refused",
            ),
            (
                json!({"path": "/a", "args": ["\0"]}),
                " = \"\\u0000\" is refused",
            ),
            (json!({"path": "/a", "timeout": -1}), " is not as the OCI"),
            (json!({"args": ["a"]}), " is not as the OCI"),
        ] {
            let document = json!({"hooks": {"poststop": [{"path": "/x"}, hook]}});
            let error = parse(&document).unwrap_err().to_string();
            let start = format!("config.json: hooks.poststop[1]{start}");
            assert!(error.starts_with(&start), "{error}");
        }
        let long =
            json!({"hooks": {"poststop": [{"path": "/x", "args": ["x".repeat(HOOKS_BYTES_MAX)]}]}});
        let error = parse(&long).unwrap_err().to_string();
        assert!(error.starts_with("config.json: hooks = 2"), "{error}");
    }
}

//! The state of a task, as its hooks read it on standard input.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The status of a task, in the specification's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HookStatus {
    /// While hooks of prestart and createRuntime run.
    Creating,
    /// While hooks of poststart run.
    Running,
    /// While hooks of poststop run.
    Stopped,
}

/// The state of a task, `runtime.md` of the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HookState {
    /// The version that `config.json` states.
    pub oci_version: String,
    pub id: String,
    pub status: HookStatus,
    /// The pid of the VMM, whose namespaces are the task's; absent once the VMM has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The annotations of `config.json`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl HookState {
    /// The same task's state with another status; without the pid once the task has stopped.
    #[must_use]
    pub(crate) fn at(&self, status: HookStatus) -> Self {
        let pid = self.pid.filter(|_| status != HookStatus::Stopped);
        Self {
            status,
            pid,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_spelt_as_the_specification_has_it() {
        let state = HookState {
            oci_version: "1.0.2-dev".into(),
            id: "web".into(),
            status: HookStatus::Creating,
            pid: Some(7),
            bundle: "/run/b".into(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
        };
        let json = serde_json::to_string(&state).unwrap();
        let golden = r#"{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":7,"bundle":"/run/b","annotations":{"k":"v"}}"#;
        assert_eq!(json, golden);
        let stopped = serde_json::to_value(state.at(HookStatus::Stopped)).unwrap();
        assert_eq!(
            (&stopped["status"], stopped.get("pid")),
            (&"stopped".into(), None)
        );
    }
}

//! What a hook is told of its task.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the task is, in the specification's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// prestart, createRuntime.
    Creating,
    /// poststart.
    Running,
    /// poststop.
    Stopped,
}

/// The state of a task, `runtime.md` of the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    /// As in `config.json`.
    pub oci_version: String,
    /// The task's id.
    pub id: String,
    /// Where it is.
    pub status: Status,
    /// The VMM's, whose namespaces are the task's; absent once it has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// As in `config.json`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl HookState {
    /// The same task, elsewhere.
    #[must_use]
    pub fn at(&self, status: Status) -> Self {
        let pid = self.pid.filter(|_| status != Status::Stopped);
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
            status: Status::Creating,
            pid: Some(7),
            bundle: "/run/b".into(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
        };
        let json = serde_json::to_string(&state).unwrap();
        let golden = r#"{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":7,"bundle":"/run/b","annotations":{"k":"v"}}"#;
        assert_eq!(json, golden);
        let stopped = serde_json::to_value(state.at(Status::Stopped)).unwrap();
        assert_eq!(
            (&stopped["status"], stopped.get("pid")),
            (&"stopped".into(), None)
        );
    }
}

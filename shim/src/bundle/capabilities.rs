//! `process.capabilities`: the rights of a program beyond its user's.

use rustix::thread::CapabilitySet;
use serde::Deserialize;
use serde_json::Value;

use super::BundleError;
use super::document::typed;

/// The five sets of a process as its spec has them (capabilities(7)): capability n is bit n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    bounding: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

/// The sets as the specification has them. `effective` adds nothing: the program is executed with all permitted
/// capabilities.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    bounding: Option<Vec<String>>,
    permitted: Option<Vec<String>>,
    inheritable: Option<Vec<String>>,
    ambient: Option<Vec<String>>,
}

impl Capabilities {
    /// Takes the capabilities out of a document, before a library parses the document that has a fixed list of
    /// names. An unknown name is a right that no kernel gives, so it is ignored.
    pub(super) fn take(document: &mut Value) -> Result<Option<Self>, BundleError> {
        let process = document.get_mut("process").and_then(Value::as_object_mut);
        let given = match process.and_then(|process| process.remove("capabilities")) {
            None | Some(Value::Null) => return Ok(None),
            Some(given) => given,
        };
        let given: Given = typed(&given, "process.capabilities")?;
        Ok(Some(Self {
            bounding: set(given.bounding.as_ref()),
            permitted: set(given.permitted.as_ref()),
            inheritable: set(given.inheritable.as_ref()),
            ambient: set(given.ambient.as_ref()),
        }))
    }

    /// The capabilities of a program of user `uid` after `execve(2)` with no_new_privs, as under runc: root gets
    /// those that the bounding set allows and that are permitted, every other user the ambient set.
    #[must_use]
    pub(crate) fn of_user(self, uid: u32) -> u64 {
        if uid == 0 {
            (self.bounding | self.inheritable) & self.permitted
        } else {
            self.ambient & self.permitted & self.inheritable
        }
    }
}

fn set(names: Option<&Vec<String>>) -> u64 {
    let names = names.into_iter().flatten();
    let known = names.filter_map(|name| {
        let found = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
        if found.is_none() {
            tracing::warn!(name, "process.capabilities: there is no such capability");
        }
        found
    });
    known.fold(0, |set, capability| set | capability.bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(capabilities: &Value) -> Capabilities {
        let mut document = json!({"process": {"args": ["a"], "capabilities": capabilities}});
        let taken = Capabilities::take(&mut document).unwrap().unwrap();
        assert_eq!(document, json!({"process": {"args": ["a"]}}));
        taken
    }

    #[test]
    fn root_has_what_is_bounded_and_permitted() {
        let both = ["CAP_CHOWN", "CAP_FOWNER", "CAP_OF_THE_FUTURE", "FSETID"];
        let given = of(&json!({"bounding": both, "permitted": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}));
        assert_eq!((given.of_user(0), given.of_user(1)), (1, 0));
        assert_eq!(given.bounding, 0b1001);
        assert_eq!(of(&json!({})).of_user(0), 0);
        assert_eq!(of(&json!({"bounding": null})).of_user(0), 0);
    }

    #[test]
    fn others_have_what_is_ambient() {
        let chown = ["CAP_CHOWN"];
        let given = json!({"permitted": chown, "inheritable": chown, "ambient": ["CAP_CHOWN", "CAP_FOWNER"]});
        assert_eq!(of(&given).of_user(1000), 1);
        assert_eq!(
            of(&json!({"ambient": chown, "permitted": chown})).of_user(1000),
            0
        );
    }

    #[test]
    fn what_is_not_given_is_none() {
        for mut document in [
            json!({}),
            json!({"process": {}}),
            json!({"process": {"capabilities": null}}),
        ] {
            assert_eq!(Capabilities::take(&mut document).unwrap(), None);
        }
        let error =
            Capabilities::take(&mut json!({"process": {"capabilities": "all"}})).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("config.json: process.capabilities"),
            "{error}"
        );
    }
}

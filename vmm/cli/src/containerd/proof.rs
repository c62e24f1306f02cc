//! The proof that a change of the configuration brings the handler, or takes it away, and does nothing else.

use std::path::Path;

use toml::{Table, Value};

use super::handler;

/// Most differences that a sentence names.
const NAMED_MAX: usize = 5;

/// The handler's presence that is expected after the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The handler is there, with our settings.
    There,
    /// There is no handler of the name.
    Gone,
}

/// Something that the change would do besides, or fail to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ProofError {
    /// The handler does not come.
    #[error("containerd would not have the handler: {0}")]
    Missing(&'static str),
    /// The handler does not go.
    #[error(
        "containerd would still have a handler `wasmvm`, which wasmvm has not written, or options for one; look for `runtimes.wasmvm` in the file and in what it imports, and take it out"
    )]
    Stays,
    /// Something else changes; holds the keys.
    #[error("the change would change more than the handler: {0}")]
    Differs(String),
}

/// Compares two dumps; the names of the files that were dumped are no difference, nor are `entries` of `imports`.
///
/// # Errors
/// [`ProofError`], with what speaks against the change.
pub(super) fn compare(
    before: &Table,
    after: &Table,
    expected: Expected,
    entries: &[&Path],
) -> Result<(), ProofError> {
    let found = handler::runtimes(after).and_then(|runtimes| runtimes.get(handler::NAME));
    match (expected, found) {
        (Expected::There, None) => {
            return Err(ProofError::Missing(
                "something that is read later replaces CRI's table (in containerd 1.x each file in `imports` does that); move CRI's table from there into the main file",
            ));
        }
        (Expected::There, Some(runtime)) if !handler::is_ours(runtime) => {
            return Err(ProofError::Missing(
                "a file that is read later gives the handler other settings",
            ));
        }
        (Expected::Gone, Some(_)) => return Err(ProofError::Stays),
        _ => {}
    }
    let mut differences = Vec::new();
    let (before, after) = (plain(before, entries), plain(after, entries));
    differ(
        &Value::Table(before),
        &Value::Table(after),
        "",
        &mut differences,
    );
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(NAMED_MAX);
    differences.truncate(NAMED_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Err(ProofError::Differs(differences.join(", ") + &more))
}

/// A dump without the handler and without what names the files that were read.
fn plain(dump: &Table, entries: &[&Path]) -> Table {
    let mut dump = dump.clone();
    if let Some(runtimes) = handler::runtimes_mut(&mut dump) {
        runtimes.remove(handler::NAME);
    }
    if let Some(Value::Array(imports)) = dump.get_mut("imports") {
        imports.retain(|entry| {
            !entry
                .as_str()
                .is_some_and(|entry| entries.contains(&Path::new(entry)))
        });
    }
    dump
}

/// Adds to `found` the keys by which two values differ. A table that is absent is an empty table.
fn differ(before: &Value, after: &Value, key: &str, found: &mut Vec<String>) {
    let (Value::Table(one), Value::Table(other)) = (before, after) else {
        if before != after {
            found.push(key.to_owned());
        }
        return;
    };
    let added = other.keys().filter(|name| !one.contains_key(*name));
    for name in one.keys().chain(added) {
        let key = if key.is_empty() {
            name.clone()
        } else {
            format!("{key}.{name}")
        };
        let empty = Value::Table(Table::new());
        match (one.get(name), other.get(name)) {
            (Some(one), Some(other)) => differ(one, other, &key, found),
            (Some(value), None) | (None, Some(value)) if *value != empty => found.push(key),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNC: &str = "version = 3\nimports = ['/a', '/tmp/x']\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
    const OURS: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.wasmvm]\nruntime_type = 'io.containerd.wasmvm.v1'\nprivileged_without_host_devices = true\nsandboxer = ''\n";

    fn compared(before: &str, after: &str, expected: Expected) -> Result<(), ProofError> {
        let table = |text: &str| toml::from_str(text).unwrap();
        compare(
            &table(before),
            &table(after),
            expected,
            &[Path::new("/tmp/x")],
        )
    }

    #[test]
    fn the_handler_and_what_was_read_may_differ() {
        let with = RUNC.replace(", '/tmp/x'", "") + OURS;
        assert_eq!(compared(RUNC, &with, Expected::There), Ok(()));
        assert_eq!(compared(&with, RUNC, Expected::Gone), Ok(()));
        assert_eq!(
            compared(&with, &with, Expected::Gone),
            Err(ProofError::Stays)
        );
    }

    #[test]
    fn a_handler_that_does_not_come_or_is_another_is_no_proof() {
        assert!(matches!(
            compared(RUNC, RUNC, Expected::There),
            Err(ProofError::Missing(_))
        ));
        let other = RUNC.to_owned() + &OURS.replace("true", "false");
        assert!(matches!(
            compared(RUNC, &other, Expected::There),
            Err(ProofError::Missing(_))
        ));
    }

    #[test]
    fn whatever_else_differs_is_named() {
        let lost = OURS.to_owned() + "[a]\nb = 1\n[new]\nc = 2\n";
        assert_eq!(
            compared(RUNC, &lost, Expected::There),
            Err(ProofError::Differs("imports, plugins.io.containerd.cri.v1.runtime.containerd.runtimes.runc, version, a, new".into()))
        );
    }
}

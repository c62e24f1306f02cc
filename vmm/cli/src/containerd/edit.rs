//! `enable` and `disable`: a plan, its proof, and then the change.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::files::{self, Changes, FileError};
use super::handler;
use super::imports;
use super::plan::{Plan, PlanError};
use super::program::{Containerd, ProgramError};
use super::proof::{self, Expected, ProofError};
use super::site::Site;

/// Why the configuration is left as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    File(#[from] FileError),
    /// The proof failed; nothing is changed.
    #[error("nothing is changed in {}", .0.display())]
    Unproved(PathBuf, #[source] ProofError),
    /// Somebody else has made a handler of our name.
    #[error("{} has a handler `wasmvm` already, which `wasmvm containerd enable` has not written; take it out first", .0.display())]
    Foreign(PathBuf),
    /// Without CRI there are no handlers.
    #[error("{} switches containerd's CRI plugin off, so Kubernetes cannot use this containerd; take \"cri\" out of `disabled_plugins` (ctr and nerdctl need no handler)", .0.display())]
    CriIsOff(PathBuf),
}

/// The outcome of a change, as the operator is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    expected: Expected,
    changed: bool,
    proved: bool,
    restart: &'static str,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.expected, self.changed) {
            (Expected::There, true) => "the handler `wasmvm` is added to containerd's configuration, and nothing else is changed",
            (Expected::There, false) => "the handler `wasmvm` is in containerd's configuration already",
            (Expected::Gone, true) => "the handler `wasmvm` is taken out of containerd's configuration",
            (Expected::Gone, false) => "there is nothing of `wasmvm containerd enable` in containerd's configuration",
        })?;
        if self.changed && !self.proved {
            f.write_str("\ncontainerd could not be asked whether anything else changes by that")?;
        }
        match self.changed {
            true => write!(
                f,
                "\nrestart containerd, so that it reads this: {}",
                self.restart
            ),
            false => Ok(()),
        }
    }
}

/// Adds the handler.
///
/// # Errors
/// [`EditError`]; the configuration is then as it was.
pub(super) fn enable(site: &Site, containerd: &impl Containerd) -> Result<Done, EditError> {
    let version = containerd.version()?;
    let without = Plan::without(site)?;
    let before = dump(site, containerd, without.base(site)?.as_deref())?;
    if handler::cri_is_off(&before) {
        return Err(EditError::CriIsOff(site.config.clone()));
    }
    // A drop-in of ours that is there is read with the file.
    let has_drop_in = without
        .drop_ins
        .iter()
        .any(|(path, text)| text.is_none() && path.exists());
    let there = handler::runtimes(&before).and_then(|runtimes| runtimes.get(handler::NAME));
    if there.is_some_and(handler::has_type) && !has_drop_in {
        return Err(EditError::Foreign(site.config.clone()));
    }
    let plan = without.with(site, &version, &before)?;
    let changed = apply(site, containerd, &plan, Some(&before), Expected::There)?;
    Ok(Done {
        expected: Expected::There,
        changed,
        proved: true,
        restart: site.restart,
    })
}

/// Takes the handler away. Where containerd is gone, or cannot read its configuration, there is no proof to wait for.
///
/// # Errors
/// [`EditError`]; the configuration is then as it was.
pub(super) fn disable(site: &Site, containerd: &impl Containerd) -> Result<Done, EditError> {
    let plan = Plan::without(site)?;
    let now = files::read(&site.config)?;
    let before = dump(site, containerd, now.as_deref()).ok();
    let changed = apply(site, containerd, &plan, before.as_ref(), Expected::Gone)?;
    Ok(Done {
        expected: Expected::Gone,
        changed,
        proved: before.is_some(),
        restart: site.restart,
    })
}

/// Makes the changes of `plan`, the file that containerd reads last, when `before` and what comes differ as expected.
fn apply(
    site: &Site,
    containerd: &impl Containerd,
    plan: &Plan,
    before: Option<&Table>,
    expected: Expected,
) -> Result<bool, EditError> {
    let mut changes = Changes::default();
    let mut all = || {
        set_all(&mut changes, &plan.drop_ins)?;
        if let Some(before) = before {
            prove(site, containerd, plan, before, expected)?;
        }
        set_all(&mut changes, &plan.templates)?;
        if site.templates.is_none() {
            changes.set(&site.config, plan.config.as_deref())?;
        }
        Ok(())
    };
    match all() {
        Ok(()) => Ok(!changes.is_empty()),
        Err(error) => {
            changes.undo()?;
            Err(error)
        }
    }
}

fn set_all(changes: &mut Changes, files: &[(PathBuf, Option<String>)]) -> Result<(), EditError> {
    for (path, text) in files {
        changes.set(path, text.as_deref())?;
    }
    Ok(())
}

fn prove(
    site: &Site,
    containerd: &impl Containerd,
    plan: &Plan,
    before: &Table,
    expected: Expected,
) -> Result<(), EditError> {
    let after = dump(site, containerd, plan.config.as_deref())?;
    let patterns: Vec<_> = site
        .drop_ins
        .iter()
        .map(|path| imports::entry(path))
        .collect();
    let entries = patterns
        .iter()
        .map(Path::new)
        .chain(site.drop_ins.iter().map(PathBuf::as_path));
    let entries: Vec<_> = entries.collect();
    proof::compare(before, &after, expected, &entries)
        .map_err(|error| EditError::Unproved(site.config.clone(), error))
}

/// The configuration that containerd makes of `text` in the place of its file.
pub(super) fn dump(
    site: &Site,
    containerd: &impl Containerd,
    text: Option<&str>,
) -> Result<Table, EditError> {
    let Some(text) = text else {
        return Ok(containerd.configuration(None)?);
    };
    let file = files::beside(&site.config, text)?;
    let dump = containerd.configuration(Some(file.path()));
    let mut dump = dump.map_err(|error| error.about(file.path(), &site.config))?;
    // Before 2.0 the file itself is among the imports.
    if let Some(Value::Array(imports)) = dump.get_mut("imports") {
        imports.retain(|entry| entry.as_str().map(Path::new) != Some(file.path()));
    }
    Ok(dump)
}

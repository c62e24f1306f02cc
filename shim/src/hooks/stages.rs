//! The hooks of a task's `Create` and `Start`.

use std::path::Path;

use super::{HookError, run_in_order};
use crate::bundle::{HookState, HookStatus, Stage, TaskSpec};
use crate::error::Refusal;
use crate::journal::{Journal, Step};

/// The state that the task's hooks read while the task is being created.
pub(crate) fn hook_state(id: &str, bundle: &Path, spec: &TaskSpec, pid: u32) -> HookState {
    HookState {
        oci_version: spec.oci_version.clone(),
        id: id.to_owned(),
        status: HookStatus::Creating,
        pid: Some(pid),
        bundle: bundle.to_owned(),
        annotations: spec.annotations.clone(),
    }
}

/// Runs the hooks of `Create`: the VMM holds its namespaces by now, so the hooks can set up the network
/// there.
pub(crate) async fn run_create_hooks(
    spec: &TaskSpec,
    state: HookState,
    journal: &Journal,
) -> Result<(), Refusal> {
    if !spec.hooks.poststop.is_empty() {
        journal.record(&Step::Poststop {
            hooks: spec.hooks.poststop.clone(),
            state: state.at(HookStatus::Stopped),
        })?;
    }
    let lists = vec![
        (Stage::Prestart, spec.hooks.prestart.clone()),
        (Stage::CreateRuntime, spec.hooks.create_runtime.clone()),
    ];
    Ok(run_in_order(lists, state).await?)
}

/// Runs the hooks of `Start`, once the program runs.
pub(crate) async fn run_poststart(spec: &TaskSpec, state: HookState) -> Result<(), HookError> {
    let lists = vec![(Stage::Poststart, spec.hooks.poststart.clone())];
    run_in_order(lists, state.at(HookStatus::Running)).await
}

//! OCI hooks: programs of the operator that containerd's clients put into `config.json`. nerdctl sets a
//! container's network up with one.
//!
//! ```text
//! Create   VMM in its namespaces ─► journal: poststop is owed ─► prestart ─► createRuntime    fails: no task
//! Start    program runs ─► poststart                                                          fails: the task ends
//! Delete   all undone ─► poststop ─► journal removed                                          fails: a warning
//! ```
//!
//! Hooks run in the host's namespaces, with the task's state as JSON on standard input, as the
//! specification has it (`config.md`, "POSIX-platform Hooks"; `runtime.md`, "State"). Where the
//! specification leaves a choice, the shim does as runc: poststop follows a Create that failed as well.

mod create;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod poststop;
mod run;
mod stages;

pub(crate) use create::{run_in_order, wait_for_cancelled};
pub(crate) use poststop::run_poststop;
pub(crate) use run::HookError;
pub(crate) use stages::{hook_state, run_create_hooks, run_poststart};

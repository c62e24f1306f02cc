//! OCI hooks: programs of the operator that containerd's clients put into `config.json`. nerdctl sets a
//! container's network up with one.
//!
//! ```text
//! Create   VMM in its namespaces ─► journal: poststop is owed ─► prestart ─► createRuntime    fails: no task
//! Start    program runs ─► poststart                                                          fails: the task ends
//! Delete   all undone ─► poststop ─► journal removed                                          fails: a warning
//! ```
//!
//! They run in the host's namespaces, with the task's state as JSON on standard input, as the
//! specification has it (`config.md`, "POSIX-platform Hooks"; `runtime.md`, "State"). Where it leaves a
//! choice, we do as runc: poststop follows a Create that failed as well.

mod create;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod poststop;
mod run;
mod state;

pub use create::{run_in_order, wait_for_cancelled};
pub use poststop::settle;
pub use run::HookError;
pub use state::{HookState, Status};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: PathBuf,
    /// With `args[0]`; without any the path is the name.
    #[serde(default)]
    pub args: Vec<String>,
    /// All of its environment, `KEY=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds; then it is killed and has failed.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// The hooks of a task, each list in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// The older name of `create_runtime`; these come first.
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
pub enum Stage {
    /// In `Create`.
    Prestart,
    /// In `Create`.
    CreateRuntime,
    /// In `Start`.
    Poststart,
    /// In `Delete`.
    Poststop,
}

impl Stage {
    /// The field of `config.json`.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Prestart => "hooks.prestart",
            Self::CreateRuntime => "hooks.createRuntime",
            Self::Poststart => "hooks.poststart",
            Self::Poststop => "hooks.poststop",
        }
    }
}

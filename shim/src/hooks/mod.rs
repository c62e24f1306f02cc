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
mod state;

pub use create::{run_in_order, wait_for_cancelled};
pub use poststop::settle;
pub use run::HookError;
pub use state::{HookState, Status};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A program to run, as `config.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
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
pub struct Hooks {
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
pub enum Stage {
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
    pub fn field(self) -> &'static str {
        match self {
            Self::Prestart => "hooks.prestart",
            Self::CreateRuntime => "hooks.createRuntime",
            Self::Poststart => "hooks.poststart",
            Self::Poststop => "hooks.poststop",
        }
    }
}

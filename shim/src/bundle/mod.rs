//! The bundle: containerd's `config.json`, read once into a typed [`TaskSpec`].
//!
//! ```text
//! config.json ──► fields: honoured, replaced, ignored, refused ──► oci-spec's types ──► TaskSpec
//! ```
//!
//! What becomes of every field of the OCI runtime specification stands in one table, [`fields`].
//! Fields that are not honoured never reach the parser: an unknown capability or seccomp action in a
//! section that means nothing to Wasm cannot fail a task.

mod capabilities;
mod confine;
mod document;
mod error;
mod fields;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod hook_state;
mod hooks;
mod load;
mod memory;
mod mounts;
mod paths;
mod process;
mod resources;
mod spec;
#[cfg(test)]
mod tests;

pub use capabilities::Capabilities;
pub use error::BundleError;
pub use fields::honoured_hooks;
pub use hook_state::{HookState, HookStatus};
pub use hooks::{Hook, Hooks, Stage};
pub use memory::{RAM_MIB_MAX, ram_mib, wasm_memory_bytes_max};
pub use paths::cleaned;
pub use process::PROCESS_TYPE_URL;
pub use spec::{
    AccessTimes, CpuLimits, Labels, Limit, MountSource, Network, ProcessSpec, Resources, Sysctl,
    TaskSpec, TmpfsOptions, TreeMount, User,
};

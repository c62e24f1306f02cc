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
mod pod;
mod process;
mod resources;
mod spec;
#[cfg(test)]
mod tests;

pub(crate) use capabilities::Capabilities;
pub(crate) use error::BundleError;
pub(crate) use fields::honoured_hooks;
pub(crate) use hook_state::{HookState, HookStatus};
pub(crate) use hooks::{Hook, Hooks, Stage};
pub(crate) use memory::{RAM_MIB_MAX, ram_mib, wasm_memory_bytes_max};
pub(crate) use paths::cleaned;
pub(crate) use pod::PodPlace;
pub(crate) use process::PROCESS_TYPE_URL;
pub(crate) use spec::{
    AccessTimes, CpuLimits, Labels, Limit, MountSource, Network, ProcessSpec, Resources, Sysctl,
    TaskSpec, TmpfsOptions, TreeMount, User,
};

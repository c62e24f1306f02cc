//! What the fuzz targets of `tests/fuzz` enter by (feature `fuzzing`, which nothing that ships has).
//!
//! Each takes any bytes and panics where something that must hold does not; what that is stands with the
//! function.

pub use crate::agent::fuzz::agent;
pub use crate::artifact::compile::fuzz::{compiler, compiler_run};
pub use crate::artifact::fuzz::store;
pub use crate::bundle::fuzz::bundle;
pub use crate::cleanup::fuzz::undo;
pub use crate::command::fuzz::names;
pub use crate::journal::fuzz::journal;
pub use crate::log::fuzz::log;
pub use crate::program::fuzz::{program, seal};
pub use crate::stats::fuzz::proc_files;
pub use crate::tree::fuzz::tree_race;
pub use crate::vm::fuzz::{vm, vm_answers};

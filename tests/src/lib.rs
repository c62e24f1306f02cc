//! What the end-to-end tests are written in.
//!
//! A test drives `ctr` as a user would, against a real containerd, and afterwards looks at the host as
//! an operator would: [`task`] runs images and holds tasks, [`exec`] runs further programs in them,
//! [`terminal`] types, [`ctr`] runs one `ctr` command, [`leftovers`] finds what was left behind,
//! [`install`] where wasmvm is, [`process`] what runs, [`cgroup`] how it is limited; [`containerd`] starts
//! one of a test's own, and [`cri`] makes pods through it; [`shim`] speaks to a task's shim where `ctr` cannot;
//! [`ring0`] makes guests that try all that ring 0 can.
//!
//! `tests/run-e2e` builds the tests, and runs them on this host or in the testbed. They find their
//! surroundings in the environment: `CONTAINERD_ADDRESS`, `WASMVM_IMAGES`, `WASMVM_FILES`.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod exec;
pub mod install;
pub mod leftovers;
pub mod process;
pub mod ring0;
pub mod shim;
pub mod task;
pub mod terminal;

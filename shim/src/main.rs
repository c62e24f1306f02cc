//! `containerd-shim-wasmvm-v1`: the containerd runtime `io.containerd.wasmvm.v1`.
//!
//! containerd starts this program for every task, in one of three short roles (`start`, `delete`,
//! `-info`) and, started by `start`, as the daemon that serves the task until it is deleted.
#![deny(unsafe_code)]

mod bundle;
mod cgroup;
mod config;
mod error;
mod program;
mod sys;
mod tree;

fn main() {}

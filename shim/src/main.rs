//! `containerd-shim-wasmvm-v1`: the containerd runtime `io.containerd.wasmvm.v1`.
//!
//! containerd starts this program for every task, in one of three short roles (`start`, `delete`,
//! `-info`) and, started by `start`, as the daemon that serves the task until it is deleted.
#![deny(unsafe_code)]

mod artifact;
mod bundle;
mod cgroup;
mod cleanup;
mod config;
mod error;
mod journal;
mod program;
mod sandbox;
#[allow(unsafe_code, reason = "the one place for it")]
mod sys;
mod tree;
mod vm;

fn main() {}

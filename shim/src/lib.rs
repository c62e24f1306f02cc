//! `containerd-shim-wasmvm-v1`: the containerd runtime `io.containerd.wasmvm.v1`.
//!
//! containerd starts this program for every task, in one of three short roles (`start`, `delete`,
//! `-info`) and, started by `start`, as the daemon that serves the task until the task is deleted.
//!
//! A library for the sake of one other program, the fuzz targets; all else enters by [`main`].
#![deny(unsafe_code)]

mod accounting;
mod agent;
mod artifact;
mod bounded_file;
mod bundle;
mod cgroup;
mod cleanup;
mod command;
mod config;
mod daemon;
mod error;
mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod guest_deadline;
mod holder;
mod hooks;
mod host_process;
mod host_threads;
mod journal;
mod log;
mod memory_file;
mod mountinfo;
mod off_thread;
mod pod;
mod program;
mod service;
mod sha256;
mod signals;
mod stats;
mod stdio;
#[allow(unsafe_code, reason = "the one place for it")]
mod sys;
mod task;
mod task_vm;
mod tree;
mod vm;
mod workload;

use std::process::ExitCode;

/// The program: runs what its arguments ask for, and prints why it failed.
#[must_use]
pub fn main() -> ExitCode {
    match command::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one place that prints: containerd quotes it when `start` or `delete` fails.
            eprintln!("{}: {}", env!("CARGO_PKG_NAME"), error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

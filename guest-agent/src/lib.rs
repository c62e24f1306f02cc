//! The guest agent: everything that runs in user space of a wasmvm microVM.
//!
//! One static binary, `/init` of the guest's initramfs, in three modes:
//!
//! ```text
//! PID 1 ── init ─► supervisor ◄── service (ttrpc, vsock AGENT_PORT) ◄── shim
//!            │          ▲
//!            │          └──────── streams (vsock STREAM_PORT)
//!            └ fork, exec ─► `runner`  one process per instance: maps the artifact, drops privileges, runs it
//!                          ► `compile` compiler VM only: turns the module in the slot into an artifact
//! ```
//!
//! * [`init`]: mounts, device nodes, role, the listeners; the only code that needs to be PID 1.
//! * `vsock`: the ports, and the announcement that they listen.
//! * [`tree`]: the task's file tree and its devices, clock, host name.
//! * [`supervisor`]: what requests do; [`table`]: the instances; [`instance`]: the state machine of one;
//!   [`instance_id`]: its name.
//! * [`service`]: a thin adapter from containerd's Task service to the supervisor; [`request`]: its door.
//! * [`streams`]: stdio streams that no instance has claimed yet; [`stdio`], [`terminal`]: how a runner
//!   gets them.
//! * [`spawn`]: fork and exec with a fixed set of descriptors, and how the child ended; [`work`]: what the
//!   child works on; [`report`]: what it answers; [`signal`]: what it is sent.
//! * [`slot`], [`engine`]: the artifact's mapping, and the one engine configuration.
//! * [`runner`]: the process of one instance; `compiler` (feature `compiler`): the process of one compile.
//!
//! # Building
//!
//! Two builds, both static (`.cargo/config.toml`). Without position independence a runner starts
//! without relocating, and so dirtying, its tables:
//!
//! ```text
//! cargo rustc --release -p wasmvm-guest-agent --bin wasmvm-agent [--features compiler] -- \
//!   -C relocation-model=static
//! ```
//!
//! `images/guest` does that and packs the results: without the feature as `agent.cpio`, with it as
//! `compiler.cpio` (which could also run tasks: it is the same program with Cranelift added).
//!
//! # Exit codes
//!
//! An instance's status is its process' wait status: the module's own code modulo 256, as on Linux;
//! 128+n when signal n ended it; 134 after a trap, whose message and Wasm backtrace are on stderr.
#![deny(unsafe_code)]

#[cfg(feature = "compiler")]
pub mod compiler;
pub mod engine;
pub mod error;
pub mod init;
pub mod instance;
pub mod instance_id;
pub mod log;
pub mod report;
pub mod request;
pub mod runner;
pub mod service;
pub mod signal;
pub mod slot;
pub mod spawn;
pub mod stdio;
pub mod streams;
pub mod supervisor;
pub mod table;
pub mod terminal;
pub mod tree;
mod vsock;
mod watch;
pub mod work;

/// Dispatches by process id and arguments; returns the exit status.
#[must_use]
pub fn main() -> i32 {
    let mut args = std::env::args().skip(1);
    let mode = args.next();
    // A signal sent to the program ends the runner, this one too; its streams are written without it.
    if mode.as_deref() != Some(spawn::RUNNER_MODE) {
        signal::ignore_sigpipe();
    }
    match mode.as_deref() {
        Some(spawn::RUNNER_MODE) => runner::main(args),
        #[cfg(feature = "compiler")]
        Some(spawn::COMPILE_MODE) => compiler::main(args),
        _ if std::process::id() == 1 => init::main(),
        _ => {
            log::line(
                log::Level::Error,
                "this program is PID 1 of a wasmvm guest; there is nothing to do for it here",
            );
            2
        }
    }
}

//! The command line: the actions for which containerd executes this program, and `serve`, by which `start` executes
//! the daemon ([`crate::daemon`]).
//!
//! ```text
//! containerd ─ exec … start ──► start: bind socket, spawn daemon, print address, exit
//!                                  └─ exec … serve, the listener is its standard input ──► daemon
//! containerd ─ exec … delete ─► delete: undo what the journal names, print DeleteResponse, exit
//! containerd ─ exec … -info ──► info: print RuntimeInfo, exit; -v prints the version
//! ```
//!
//! `start`, `delete` and `-info` run for every task, so they start no async runtime. Any output
//! besides the reply corrupts the reply: containerd reads standard output and standard error together.

mod args;
mod bootstrap;
mod cgroup;
mod delete;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod info;
mod socket;
mod start;

pub(crate) use args::{Action, Args, ArgsError};
pub(crate) use delete::DeleteError;
pub(crate) use start::StartError;

use std::io::{self, Read, Write};

/// Longest standard input that is read: containerd's options, far below ttrpc's largest message.
const STDIN_BYTES_MAX: u64 = 4 << 20;

/// Why a command failed; printed to standard error, which containerd quotes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The command line is not containerd's.
    #[error("cannot read the command line")]
    Args(#[from] ArgsError),
    /// No daemon was started.
    #[error("cannot start the shim")]
    Start(#[from] StartError),
    /// The task could not be undone as a whole, and parts of it may be left.
    #[error("cannot delete the task")]
    Delete(#[from] DeleteError),
    /// The daemon could not begin to serve.
    #[error("cannot serve")]
    Serve(#[from] crate::daemon::DaemonError),
    /// Standard input or output failed.
    #[error("cannot {0}")]
    Stdio(&'static str, #[source] io::Error),
}

/// Acts as the command line says.
///
/// # Errors
/// [`CommandError`], whose chain is one sentence for the operator.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<(), CommandError> {
    let args = Args::parse(arguments)?;
    match args.action {
        Action::Info => reply(&info::runtime_info()),
        Action::Version => reply(info::version().as_bytes()),
        Action::Start => reply(&start::start(&args, &stdin()?)?),
        Action::Delete => reply(&delete::delete(&args)?),
        Action::Serve => Ok(crate::daemon::serve(&start::daemon_order(args))?),
    }
}

fn stdin() -> Result<Vec<u8>, CommandError> {
    let mut input = Vec::new();
    io::stdin()
        .lock()
        .take(STDIN_BYTES_MAX)
        .read_to_end(&mut input)
        .map_err(|error| CommandError::Stdio("read standard input", error))?;
    Ok(input)
}

fn reply(bytes: &[u8]) -> Result<(), CommandError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| CommandError::Stdio("write the reply to standard output", error))
}

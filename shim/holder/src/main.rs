//! `wasmvm-holder`: the process that stands for a pod's sandbox container.
//!
//! containerd's CRI plugin names `/proc/<pid of the sandbox>/ns/…` in the spec of every container, and cAdvisor reads
//! a pod's network counters by that pid. The holder is that pid, and does nothing: no file of an image is mounted in
//! its root or executed.
//!
//! ```text
//! shim: new PID, IPC, UTS and mount namespaces, the pod's network ─ exec ─► holder
//!        one byte: the score is set ──────────────────────────────────────► confine
//!        one zero byte, or a sentence and the end ◄──────────────────────── hold
//!        SIGTERM, SIGINT, or the end of the socket ───────────────────────► exit status 0
//! ```
//!
//! Standard input, output and error are one socket to the shim, whose end is the holder's end: a shim that dies leaves
//! no holder. The working directory is the root that the holder is to have.
#![deny(unsafe_code)]

mod confine;
#[allow(unsafe_code, reason = "a signal's handler")]
mod end;

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use confine::ConfineError;

/// Byte by which the holder reports that it is confined.
const READY: u8 = 0;

/// Why the holder does not hold.
#[derive(Debug, thiserror::Error)]
enum HolderError {
    /// The shim ended, or the program was started by something else.
    #[error("the order of a shim is missing; the shim alone starts this program")]
    NoOrder(#[source] io::Error),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The shim could not be told.
    #[error("cannot answer the shim")]
    Answer(#[source] io::Error),
}

fn main() -> ExitCode {
    match begin() {
        Ok(()) => {
            hold();
            ExitCode::SUCCESS
        }
        Err(error) => {
            let source = std::error::Error::source(&error);
            let source = source.map_or_else(String::new, |source| format!(": {source}"));
            // The shim quotes the sentence.
            eprintln!("{error}{source}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for the shim's word, confines the process, and tells the shim.
fn begin() -> Result<(), HolderError> {
    let mut order = [0];
    io::stdin()
        .lock()
        .read_exact(&mut order)
        .map_err(HolderError::NoOrder)?;
    confine::confine()?;
    io::stdout()
        .write_all(&[READY])
        .and_then(|()| io::stdout().flush())
        .map_err(HolderError::Answer)
}

/// Returns when the shim has closed its end of the socket.
fn hold() {
    let mut byte = [0];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
            Err(rustix::io::Errno::INTR) | Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

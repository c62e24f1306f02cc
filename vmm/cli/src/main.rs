//! The operator's command line, over the VMM's library.
//!
//! The crate stands apart from the VMM, which is trusted with guests: nothing of the VMM uses the command line.
//!
//! * [`check`]: whether this host's KVM can run a guest.
//! * [`inspect`]: the live state of a task.

#![deny(unsafe_code)]

mod check;
mod inspect;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::inspect::Question;

const USAGE: &str = "\
usage: wasmvm check        say whether this host can run wasmvm's VMs
       wasmvm inspect [--namespace NAMESPACE] [--json] ID [PATH]
                           show the live state of a task: shim, VMM, devices, programs
       wasmvm --help
       wasmvm --version

check prints one sentence per finding, marked `ok`, `low` (guests run, with less between
them and the host) or `BAD`, and a last one with the verdict. It opens /dev/kvm and runs
two small guests on it for at most ten seconds each.

inspect asks the task's shim and shows a tree, or what is at PATH in it (as in task/init/state).
Text after `(guest)` is the guest's own and may be false. The namespace is `default` unless given.

exit status: 0  fine (this help, this version, a host that will do, or a state)
             1  this host's KVM cannot be used; or there is no such task, path or answer
             2  wrong usage, or standard output cannot be written
";
const VERSION: &str = concat!("wasmvm ", env!("CARGO_PKG_VERSION"), "\n");

const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.to_str().unwrap_or_default())
        .collect();
    run(&arguments, &mut io::stdout()).unwrap_or_else(|error| {
        eprintln!("wasmvm: cannot write: {error}");
        ExitCode::from(WRONG_USAGE)
    })
}

/// Runs the subcommand that `arguments` name and writes its answer to `out`; returns the exit status.
///
/// # Errors
/// `out`'s, when the answer cannot be written.
fn run(arguments: &[&str], out: &mut impl Write) -> io::Result<ExitCode> {
    match arguments {
        ["check"] => check::run(out),
        ["inspect", words @ ..] => match Question::of(words) {
            Some(question) => inspect::run(&question, out),
            None => Ok(wrong_usage()),
        },
        ["--help" | "-h" | "help"] => print(USAGE, out),
        ["--version" | "-V"] => print(VERSION, out),
        _ => Ok(wrong_usage()),
    }
}

fn wrong_usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(WRONG_USAGE)
}

fn print(text: &str, out: &mut impl Write) -> io::Result<ExitCode> {
    out.write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

//! The operator's command line, over the VMM's library.
//!
//! The crate stands apart from the VMM, which is trusted with guests: nothing of the VMM uses the command line.
//!
//! * [`check`]: whether this host's KVM can run a guest.
//! * [`containerd`]: the handler in containerd's configuration.
//! * [`inspect`]: the live state of a task.
//! * [`node`]: wasmvm's files on a node of Kubernetes.

#![deny(unsafe_code)]

mod check;
mod containerd;
mod inspect;
mod node;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::inspect::Question;

const USAGE: &str = "\
usage: wasmvm check        say whether this host can run wasmvm's VMs
       wasmvm inspect [--namespace NAMESPACE] [--json] ID [PATH]
                           show the live state of a task: shim, VMM, devices, programs
       wasmvm containerd enable|disable|status [--config FILE] [--containerd PROGRAM]
                           add the handler `wasmvm` to containerd's configuration, or take it out
       wasmvm node install --from FOLDER --host FOLDER [--stay]
       wasmvm node remove --host FOLDER
                           what the image for Kubernetes runs on each node
       wasmvm --help
       wasmvm --version

check prints one sentence per finding, marked `ok`, `low` (guests run, with less between
them and the host) or `BAD`, and a last one with the verdict. It opens /dev/kvm and runs
two small guests on it for at most ten seconds each.

inspect asks the task's shim and shows a tree, or what is at PATH in it (as in task/init/state).
Text after `(guest)` is the guest's own and may be false. The namespace is `default` unless given.

containerd finds the file that containerd reads (its own, K3s's or RKE2's; FILE where there are
several) and changes it only where `containerd config dump` shows that nothing but the handler
comes or goes. It restarts nothing. disable refuses while tasks of wasmvm live.

node install copies wasmvm from one FOLDER (bin, lib/wasmvm) into a folder of its version below the
host's (as /usr/local), leads the links in bin to it, keeps versions that run, and tells
node-feature-discovery what check says; with --stay it ends at SIGTERM. remove takes all away.

exit status: 0  fine (this help, this version, a host that will do, a state, a changed or right configuration)
             1  this host's KVM cannot be used; there is no such task, path or answer; or containerd's
                configuration is left as it was, or has no handler
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
        ["containerd", words @ ..] => match containerd::Order::of(words) {
            Some(order) => containerd::run(&order, out),
            None => Ok(wrong_usage()),
        },
        ["inspect", words @ ..] => match Question::of(words) {
            Some(question) => inspect::run(&question, out),
            None => Ok(wrong_usage()),
        },
        ["node", words @ ..] => match node::Order::of(words) {
            Some(order) => node::run(&order, out),
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

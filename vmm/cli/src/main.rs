//! The operator's command line.

#![deny(unsafe_code)]
#![warn(unreachable_pub)]

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use check::{check, host::KVM_PATH, verdict};

mod check;

const USAGE: &str = "\
usage: wasmvm check        say whether this host can run wasmvm's VMs
       wasmvm --help
       wasmvm --version

check prints one sentence per finding, marked `ok`, `low` (guests run, with less between
them and the host) or `BAD`, and a last one with the verdict. It opens /dev/kvm and runs
two small guests on it for at most ten seconds each.

exit status: 0  fine (this help, this version, or a host that will do)
             1  this host's KVM cannot be used
             2  wrong usage, or standard output cannot be written
";

const UNUSABLE: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .collect();
    let written = match arguments.as_slice() {
        ["check"] => print_check(),
        ["--help" | "-h" | "help"] => print(USAGE).map(|()| ExitCode::SUCCESS),
        ["--version" | "-V"] => {
            print(concat!("wasmvm ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(ExitCode::from(WRONG_USAGE))
        }
    };
    written.unwrap_or_else(|error| {
        eprintln!("wasmvm: cannot write: {error}");
        ExitCode::from(WRONG_USAGE)
    })
}

fn print_check() -> io::Result<ExitCode> {
    let findings = check(Path::new(KVM_PATH));
    let verdict = verdict(&findings);
    for finding in findings.iter().chain([&verdict]) {
        print(&format!("{finding}\n"))?;
    }
    Ok(if verdict.is_bad() {
        ExitCode::from(UNUSABLE)
    } else {
        ExitCode::SUCCESS
    })
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

//! What `wasmvm` prints where no guest runs: help, version, and the usage after words that are no subcommand.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output};

fn wasmvm(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wasmvm"));
    command.args(arguments);
    command
}

#[test]
fn help_is_on_standard_output_under_each_of_its_names() {
    let help = wasmvm(&["--help"]);
    assert!(help.stdout.starts_with(b"usage: wasmvm check "));
    for word in ["--help", "-h", "help"] {
        let said = wasmvm(&[word]);
        assert_eq!(said.status.code(), Some(0), "{word}");
        assert_eq!((said.stdout, said.stderr), (help.stdout.clone(), vec![]));
    }
}

#[test]
fn the_version_is_one_line() {
    for word in ["--version", "-V"] {
        let said = wasmvm(&[word]);
        assert_eq!(said.status.code(), Some(0), "{word}");
        let line = concat!("wasmvm ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(String::from_utf8(said.stdout).unwrap(), line);
        assert_eq!(said.stderr, b"");
    }
}

#[test]
fn any_other_words_get_the_help_on_standard_error() {
    let help = wasmvm(&["--help"]).stdout;
    let wrong: [&[&str]; 9] = [
        &[],
        &[""],
        &["run"],
        &["--check"],
        &["check", "/dev/kvm"],
        &["--help", "check"],
        &["inspect"],
        &["inspect", "--json"],
        &["inspect", "web", "vmm", "devices"],
    ];
    for words in wrong {
        let said = wasmvm(words);
        assert_eq!(said.status.code(), Some(2), "{words:?}");
        assert_eq!((said.stdout, said.stderr), (vec![], help.clone()));
    }
}

#[test]
fn a_word_that_is_no_text_is_a_wrong_word() {
    let word = OsStr::from_bytes(b"\xff");
    let said = command(&["check"]).arg(word).output().unwrap();
    assert_eq!((said.status.code(), said.stdout), (Some(2), vec![]));
}

#[test]
fn the_state_of_no_task_is_a_sentence_on_standard_error() {
    let said = wasmvm(&["inspect", "--namespace", "no.such", "web"]);
    assert_eq!((said.status.code(), said.stdout), (Some(1), vec![]));
    assert_eq!(
        String::from_utf8(said.stderr).unwrap(),
        "wasmvm: no task \"web\" runs in namespace \"no.such\"; `ctr -n no.such task ls` lists the tasks\n"
    );
}

#[test]
fn standard_output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let said = command(&["--help"]).stdout(full).output().unwrap();
    assert_eq!(said.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(said.stderr).unwrap(),
        "wasmvm: cannot write: No space left on device (os error 28)\n"
    );
}

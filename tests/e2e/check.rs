//! `wasmvm check` on a host that runs all the other tests.

use std::process::Command;

use wasmvm_tests::ctr::run;

#[test]
fn wasmvm_check_finds_this_host_fit() {
    let mut command = Command::new("wasmvm");
    command.arg("check");
    let _ = run(command, Vec::new()).expect_status(0);
}

//! `wasmvm check` on a host that runs all the other tests.

use std::process::Command;

use wasmvm_tests::ctr::run;

/// The rest of what KVM can be told depends on the processor.
#[test]
fn wasmvm_check_finds_this_host_fit_and_ring_0_kept_in() {
    let mut command = Command::new("wasmvm");
    command.arg("check");
    let checked = run(command, Vec::new()).expect_status(0);
    let said = String::from_utf8_lossy(&checked.stdout);
    let fit = [
        "ok  KVM_CAP_ENFORCE_PV_FEATURE_CPUID is there",
        "ok  KVM_CAP_X86_MSR_FILTER is there",
        "ok  ring 0 has no performance counter.",
        "ok  ring 0 reads the",
        "ok  ring 0 writes no MSR that is on no list.",
        "ok  ring 0 has the MSRs that Linux cannot do without.",
    ];
    for line in fit {
        assert!(
            said.lines().any(|found| found.starts_with(line)),
            "{line}\n{said}"
        );
    }
}

//! Memory limits: the cgroup's is the OCI limit, and a program that wants more is told so.

use wasmvm_tests::cgroup::Cgroup;
use wasmvm_tests::task::Run;

const MIB: u64 = 1 << 20;

fn limited(mib: u64) -> Run {
    Run::image("probe").option("--memory-limit", &(mib * MIB).to_string())
}

#[test]
fn a_32_mib_task_boots_and_prints_hello() {
    let outcome = Run::image("hello-c")
        .option("--memory-limit", &(32 * MIB).to_string())
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.text(), "Hello from /hello!\n");
}

#[test]
fn a_third_party_program_runs_under_64_mib() {
    let outcome = Run::image("icestorm")
        .option("--memory-limit", &(64 * MIB).to_string())
        .args(["icepll", "-i", "12", "-o", "48"])
        .to_end()
        .expect_status(0);
    assert!(
        outcome.text().contains("F_PLLOUT:   48.000 MHz (achieved)"),
        "{outcome}"
    );
}

#[test]
fn the_cgroups_limit_is_the_oci_limit_exactly() {
    let task = limited(64)
        .args(["/probe", "loop"])
        .flag("--null-io")
        .detached();
    let pid = task.until("RUNNING");
    let limit = Cgroup::of(pid, "memory").memory_limit();
    assert_eq!(limit, (64 * MIB).to_string());
    task.kill("SIGKILL");
}

#[test]
fn growing_beyond_the_limit_fails_in_the_program_first() {
    let outcome = limited(64).args(["/probe", "alloc", "128"]).to_end();
    assert!(outcome.status == 1 || outcome.status == 137, "{outcome}");
    let _ = limited(64)
        .args(["/probe", "alloc", "16"])
        .to_end()
        .expect_status(0);
}

#[test]
fn exhausting_the_memory_harms_nobody_else() {
    let outcome = limited(64).args(["/probe", "exhaust"]).to_end();
    assert!([0, 1, 134, 137].contains(&outcome.status), "{outcome}");
    let _ = Run::image("hello-c").to_end().expect_status(0);
}

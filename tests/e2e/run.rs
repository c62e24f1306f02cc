//! What a program sees, and what its user sees of it.

use std::fs;

use wasmvm_tests::ctr::ctr;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

#[test]
fn a_program_prints_and_everything_is_gone_afterwards() {
    let before = leftovers::found();
    let outcome = Run::image("hello-c").to_end().expect_status(0);
    assert_eq!(outcome.text(), "Hello from /hello!\n");
    leftovers::expect_none_since(&before);
}

#[test]
fn the_exit_status_is_the_programs_own() {
    for status in [0, 1, 7, 255] {
        let _ = Run::image("probe")
            .args(["/probe", "exit", &status.to_string()])
            .to_end()
            .expect_status(status);
    }
}

#[test]
fn a_trap_is_134_with_message_and_backtrace() {
    let outcome = Run::image("probe")
        .args(["/probe", "trap", "divide"])
        .to_end()
        .expect_status(134);
    let error = outcome.error();
    assert!(error.contains("integer divide by zero"), "{outcome}");
    assert!(error.contains("wasm backtrace"), "{outcome}");
    assert!(error.contains("run_trap"), "{outcome}");
}

#[test]
fn the_container_options_of_ctr_reach_the_program() {
    let outcome = Run::image("probe")
        .option("--env", "ADDED=by ctr")
        .args(["/probe", "env"])
        .to_end()
        .expect_status(0);
    let text = outcome.text();
    assert!(
        text.lines().any(|line| line == "FROM_IMAGE=yes"),
        "{outcome}"
    );
    assert!(text.lines().any(|line| line == "ADDED=by ctr"), "{outcome}");

    let outcome = Run::image("probe")
        .option("--cwd", "/data")
        .args(["/probe", "pwd"])
        .to_end()
        .expect_status(0);
    assert!(outcome.text().starts_with("PWD=/data\n"), "{outcome}");

    let outcome = Run::image("probe-component")
        .option("--cwd", "/data")
        .args(["/probe", "cwd"])
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.text(), "/data\n");
}

#[test]
fn bind_mounts_are_seen_and_read_only_is_the_hosts_word() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("note"), "from the host\n").expect("a file");
    let mount = |options: &str| {
        format!(
            "type=bind,src={},dst=/mnt/host,options={options}",
            folder.path().display()
        )
    };
    let probe = |options: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Run::image("probe")
            .option("--mount", &mount(options))
            .args_vec(arguments)
            .to_end()
    };
    let outcome = probe("rbind:rw", &["/probe", "read", "/mnt/host/note"]).expect_status(0);
    assert_eq!(outcome.text(), "from the host\n");
    let _ = probe(
        "rbind:rw",
        &["/probe", "write", "/mnt/host/new", "from inside"],
    )
    .expect_status(0);
    assert_eq!(
        fs::read_to_string(folder.path().join("new")).expect("written"),
        "from inside"
    );
    let _ = probe("rbind:ro", &["/probe", "write", "/mnt/host/other", "x"]).expect_status(1);
    assert!(!folder.path().join("other").exists());
}

#[test]
fn files_belong_to_the_user_the_program_runs_as() {
    let probe = |arguments: [&str; 3]| {
        Run::image("probe").args(arguments).with_spec(|spec| {
            spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
        })
    };
    let outcome = probe(["/probe", "read", "/home/user/own"]).expect_status(0);
    assert_eq!(outcome.text(), "of uid 1000\n");
    let outcome = probe(["/probe", "read", "/root/secret"]).expect_status(1);
    assert!(outcome.error().contains("Permission denied"), "{outcome}");
}

#[test]
fn a_read_only_root_cannot_be_written() {
    let write = || Run::image("probe").args(["/probe", "write", "/data/new", "x"]);
    let outcome = write().flag("--read-only").to_end().expect_status(1);
    assert!(outcome.error().contains("/data/new"), "{outcome}");
    let _ = write().to_end().expect_status(0);
}

#[test]
fn clock_and_random_are_the_worlds() {
    let outcome = Run::image("probe")
        .args(["/probe", "clock"])
        .to_end()
        .expect_status(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let seen = outcome
        .text()
        .split_ascii_whitespace()
        .find_map(|word| word.parse::<u64>().ok());
    assert!(
        seen.is_some_and(|seen| seen.abs_diff(now) < 60),
        "now {now}: {outcome}"
    );

    let random = || {
        Run::image("probe")
            .args(["/probe", "random", "16"])
            .to_end()
            .expect_status(0)
            .text()
    };
    let (first, second) = (random(), random());
    assert_eq!(first.trim_end().len(), 32);
    assert_ne!(first, second);
}

#[test]
fn a_detached_task_is_seen_running_and_then_stopped() {
    let task = Run::image("probe")
        .args(["/probe", "sleep", "1500"])
        .detached();
    let pid = task.until("RUNNING");
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).expect("the pid is a process");
    assert_eq!(comm.trim_end(), "wasmvm-vmm", "the task's pid is the VMM's");
    task.until("STOPPED");
    let listed = ctr(["task", "ps", task.id()]);
    assert!(
        listed.text().contains(&pid.to_string()),
        "init is listed until Delete: {listed}"
    );
}

#[test]
fn the_program_is_found_by_path_through_links() {
    let outcome = Run::image("probe")
        .args(["probe", "out", "found"])
        .to_end()
        .expect_status(0);
    assert_eq!(outcome.text(), "found\n");
}

//! Output that goes to no FIFO: `ctr run --log-uri`, `--null-io`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use wasmvm_tests::exec::Exec;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

#[test]
fn a_log_file_gets_both_outputs_of_every_run() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a/b/log");
    let uri = format!("file://{}", path.display());
    for _ in 0..2 {
        let outcome = Run::image("tiny").option("--log-uri", &uri).to_end();
        assert_eq!(outcome.expect_status(0).text(), "");
    }
    let refused = Run::image("probe").args(["/probe", "trap", "divide"]);
    let outcome = refused.option("--log-uri", &uri).to_end();
    outcome.expect_status(134);
    let log = fs::read_to_string(path).expect("a log");
    assert!(log.starts_with("tiny\ntiny\n"), "{log}");
    assert!(log.len() > "tiny\ntiny\n".len(), "standard error: {log}");
    leftovers::expect_none_since(&before);
}

#[test]
fn an_exec_has_a_log_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let task = Run::image("busybox")
        .args(["sh", "-c", "sleep 4321"])
        .flag("--null-io")
        .detached();
    let exec = Exec::of(&task, ["sh", "-c", "echo out; echo err >&2; exit 3"]);
    let uri = format!("file://{}", path.display());
    let outcome = exec.option("--log-uri", &uri).to_end().expect_status(3);
    assert_eq!(outcome.text(), "");
    let log = fs::read_to_string(path).expect("a log");
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out"]);
}

#[test]
fn a_logger_is_run_fed_and_waited_for() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let (logger, log) = (folder.path().join("logger"), folder.path().join("log"));
    let script = format!(
        "#!/bin/sh\nexec 5>&-\n{{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"; cat <&3; cat <&4; }} >{}\n",
        log.display()
    );
    fs::write(&logger, script).expect("written");
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).expect("allowed");
    let uri = format!("binary://{}?key=a%20value", logger.display());
    let run = Run::image("tiny").option("--log-uri", &uri);
    let id = run.task().id().to_owned();
    run.to_end().expect_status(0);
    let expected = format!("{id} default key a value\ntiny\n");
    assert_eq!(fs::read_to_string(log).expect("a log"), expected);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_log_uri_that_cannot_be_is_named() {
    let outcome = Run::image("tiny")
        .option("--log-uri", "tcp://host:1")
        .to_end();
    outcome.expect_refusal(&["stdout is \"tcp://host:1\"", "file://"]);
    let uri = "binary:///no/such/logger";
    let outcome = Run::image("tiny").option("--log-uri", uri).to_end();
    outcome.expect_refusal(&["cannot run the logger /no/such/logger", "No such file"]);
}

#[test]
fn output_may_go_nowhere() {
    let outcome = Run::image("tiny").flag("--null-io").to_end();
    assert_eq!(outcome.expect_status(0).text(), "");
}

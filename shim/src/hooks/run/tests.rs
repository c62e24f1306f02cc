//! Hooks as shell scripts.

use std::fs;

use super::*;
use crate::bundle::HookStatus;
use crate::error::expect_codes;
use crate::hooks::{run_in_order, wait_for_cancelled};

fn shell(script: &str) -> Hook {
    Hook {
        path: "/bin/sh".into(),
        args: vec!["a-name".into(), "-c".into(), script.into()],
        env: vec!["PATH=/usr/bin:/bin".into(), "A=b=c".into()],
        timeout: None,
    }
}

fn state() -> HookState {
    HookState {
        oci_version: "1.0.2".into(),
        id: "web".into(),
        status: HookStatus::Creating,
        pid: Some(7),
        bundle: "/b".into(),
        annotations: Default::default(),
    }
}

fn run(hook: &Hook) -> Result<(), HookError> {
    let call = Call {
        stage: Stage::CreateRuntime,
        index: 2,
        hook,
    };
    Running::spawn(call, &state()).and_then(|running| running.finish(None))
}

#[test]
fn a_hook_reads_the_state_and_has_its_own_environment_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("said");
    let script = format!(
        "{{ cat; echo; env; tr '\\0' ' ' </proc/$$/cmdline; }} >{}",
        file.display()
    );
    run(&shell(&script)).unwrap();
    let said = fs::read_to_string(file).unwrap();
    let mut lines = said.lines();
    let golden = r#"{"ociVersion":"1.0.2","id":"web","status":"creating","pid":7,"bundle":"/b"}"#;
    assert_eq!(lines.next(), Some(golden));
    assert!(said.contains("\nA=b=c\n"), "{said}");
    assert!(!said.contains("HOME="), "{said}");
    assert!(lines.any(|line| line.starts_with("a-name -c ")), "{said}");
}

#[test]
fn a_failure_says_which_hook_how_and_what_it_printed() {
    let error = run(&shell("echo out; echo oh no >&2; exit 3")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert_eq!(
        error.to_string(),
        "hooks.createRuntime[2], /bin/sh, exited with status 3: out oh no"
    );
    let error = run(&shell("kill -9 $$")).unwrap_err();
    assert!(
        error.to_string().ends_with("was ended by signal 9"),
        "{error}"
    );
    let hook = Hook {
        path: "/nonexistent".into(),
        ..shell("")
    };
    let error = crate::error::chain(&run(&hook).unwrap_err());
    assert!(
        error.starts_with("cannot run hooks.createRuntime[2], /nonexistent: No such file"),
        "{error}"
    );
}

#[test]
fn what_is_printed_is_read_to_the_end_and_the_last_of_it_kept() {
    let error = run(&shell("yes | head -c 1000000; echo; echo the end; exit 1")).unwrap_err();
    let error = error.to_string();
    assert!(error.ends_with("the end"), "{error}");
    assert!(error.len() < QUOTED_BYTES_MAX + 100);
}

#[test]
fn a_late_hook_is_killed_with_what_it_started() {
    let hook = Hook {
        timeout: Some(1),
        ..shell("sleep 300 & echo $!; wait")
    };
    let error = run(&hook).unwrap_err().to_string();
    let (text, pid) = error.rsplit_once(": ").unwrap();
    assert!(
        text.ends_with("did not end within 1 s and was killed"),
        "{error}"
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    // A zombie until somebody above reaps it.
    let gone = || fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty());
    while gone() {
        assert!(Instant::now() < deadline, "still runs");
        std::thread::yield_now();
    }
}

/// The specification's `timeout` is any number of seconds.
#[test]
fn the_longest_timeout_that_can_be_written_is_a_limit_like_others() {
    let hook = |timeout| Hook {
        timeout: Some(timeout),
        ..shell("exit 0")
    };
    for timeout in [u64::MAX, u64::MAX / 2, TIMEOUT_MAX.as_secs() + 1] {
        run(&hook(timeout)).unwrap();
        assert_eq!(limit(Some(timeout)), TIMEOUT_MAX);
    }
    assert_eq!(limit(Some(1)), Duration::from_secs(1));
    assert_eq!(limit(None), TIMEOUT_DEFAULT);
}

#[test]
fn what_a_hook_leaves_in_the_background_is_not_waited_for() {
    let begun = Instant::now();
    run(&shell("sleep 20 &")).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_dropped_request_ends_its_hook_before_the_task_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!(
        "echo $$ >{0}.tmp; mv {0}.tmp {0}; sleep 300",
        file.display()
    );
    let hooks = vec![(Stage::Prestart, vec![shell(&script)])];
    let appears = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = run_in_order(hooks, state()) => panic!("{ended:?}"),
        () = appears => {}
    }
    let pid = fs::read_to_string(file).unwrap();
    wait_for_cancelled("another");
    wait_for_cancelled("web");
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
}

#[tokio::test]
async fn the_first_that_fails_is_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let say = |word: &str| shell(&format!("echo {word} >>{}", file.display()));
    let hooks = vec![
        (Stage::Prestart, vec![say("a")]),
        (
            Stage::CreateRuntime,
            vec![say("b"), shell("exit 1"), say("c")],
        ),
    ];
    let error = run_in_order(hooks, state()).await.unwrap_err();
    assert!(
        error.to_string().starts_with("hooks.createRuntime[1]"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(file).unwrap(), "a\nb\n");
}

#[test]
fn every_error_has_its_code() {
    let path = || PathBuf::from("/h");
    let source = || io::ErrorKind::NotFound.into();
    let (field, index) = ("hooks.prestart", 0);
    let failed = HookError::Failed {
        field,
        index,
        path: path(),
        how: "exited".into(),
        output: String::new(),
    };
    expect_codes([
        (
            HookError::Spawn {
                field,
                index,
                path: path(),
                source: source(),
            },
            ErrorCode::FailedPrecondition,
        ),
        (failed, ErrorCode::FailedPrecondition),
        (HookError::Cancelled, ErrorCode::FailedPrecondition),
        (HookError::Wait(source()), ErrorCode::Internal),
    ]);
}

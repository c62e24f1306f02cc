//! OCI hooks: where they run, what they are told, and that each runs once.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wasmvm_tests::ctr::ctr;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

/// How long a task may take to start under emulation.
const START_MAX: Duration = Duration::from_secs(120);

/// Appends its name and, after a space, the state it is told, as one line.
fn hook(name: &str, file: &Path, then: &str) -> Value {
    // In one write, so that nobody sees half a line.
    let script = format!(
        "state=$(cat); echo \"{name} $state\" >>{}; {then}",
        file.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

/// What has run: names and states.
fn ran(file: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let (name, state) = line.split_once(' ').expect("a name and a state");
        (name.to_owned(), serde_json::from_str(state).expect("JSON"))
    };
    text.lines().map(line).collect()
}

fn names(file: &Path) -> Vec<String> {
    ran(file).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn each_hook_runs_in_its_place_and_is_told_the_state() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ran");
    // nerdctl's network set-up needs the namespaces of that process.
    let look = format!(
        "pid=${{state#*\\\"pid\\\":}}; pid=${{pid%%[!0-9]*}}; {{ cat /proc/$pid/comm; readlink /proc/$pid/ns/net; }} >{}",
        folder.path().join("vmm").display()
    );
    let run = Run::image("tiny").option("--label", "k=v");
    let id = run.task().id().to_owned();
    let outcome = run.with_spec(|spec| {
        spec["annotations"] = json!({ "a": "b" });
        spec["hooks"] = json!({
            "prestart": [hook("prestart", &file, "")],
            "createRuntime": [hook("one", &file, &look), hook("two", &file, "")],
            "poststart": [hook("poststart", &file, "")],
            "poststop": [hook("poststop", &file, "exit 1"), hook("last", &file, "")],
        });
    });
    assert_eq!(outcome.expect_status(0).text(), "tiny\n");
    let ran = ran(&file);
    let names: Vec<_> = ran.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["prestart", "one", "two", "poststart", "poststop", "last"]
    );
    let statuses: Vec<_> = ran.iter().map(|(_, state)| &state["status"]).collect();
    let expected = [
        "creating", "creating", "creating", "running", "stopped", "stopped",
    ];
    assert_eq!(statuses, expected);
    for (_, state) in &ran {
        assert_eq!(state["id"], id.as_str());
        assert_eq!(state["annotations"]["a"], "b");
        assert!(state["bundle"].as_str().expect("a path").ends_with(&id));
    }
    assert!(ran[0].1["pid"].as_u64() > Some(1), "{}", ran[0].1);
    assert_eq!(ran[0].1["pid"], ran[3].1["pid"]);
    assert!(ran[4].1.get("pid").is_none());
    let seen = fs::read_to_string(folder.path().join("vmm")).expect("written");
    let ours = fs::read_link("/proc/self/ns/net").expect("a link");
    assert!(seen.starts_with("wasmvm-vmm\nnet:["), "{seen}");
    assert!(!seen.ends_with(&format!("{}\n", ours.display())), "{seen}");
    leftovers::expect_none_since(&before);
}

#[test]
fn a_failing_hook_of_create_fails_it_and_undoes_everything() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ran");
    let outcome = Run::image("tiny").with_spec(|spec| {
        spec["hooks"] = json!({
            "createRuntime": [hook("one", &file, "echo no network today >&2; exit 3")],
            "poststop": [hook("poststop", &file, "")],
        });
    });
    outcome.expect_refusal(&[
        "hooks.createRuntime[0], /bin/sh, exited with status 3: no network today",
    ]);
    // As with runc, what the first had done is to be undone.
    assert_eq!(names(&file), ["one", "poststop"]);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_failing_poststart_hook_fails_the_start() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ran");
    let outcome = Run::image("probe")
        .args(["/probe", "loop"])
        .with_spec(|spec| {
            spec["hooks"] = json!({ "poststart": [hook("poststart", &file, "exit 1")] });
        });
    outcome.expect_refusal(&["hooks.poststart[0], /bin/sh, exited with status 1"]);
    assert_eq!(names(&file), ["poststart"]);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_late_hook_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ran");
    let outcome = Run::image("tiny").with_spec(|spec| {
        let mut late = hook("late", &file, "sleep 300");
        late["timeout"] = 2.into();
        spec["hooks"] = json!({ "createRuntime": [late] });
    });
    outcome.expect_refusal(&[
        "hooks.createRuntime[0]",
        "did not end within 2 s and was killed",
    ]);
}

#[test]
fn poststop_hooks_run_once_when_the_shim_was_killed() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ran");
    let run = Run::image("probe").args(["/probe", "loop"]);
    let task = run.task();
    std::thread::scope(|scope| {
        let hooked = scope.spawn(|| {
            run.with_spec(|spec| {
                spec["hooks"] = json!({
                    "poststart": [hook("poststart", &file, "")],
                    "poststop": [hook("poststop", &file, ""), hook("last", &file, "")],
                });
            })
        });
        let start = Instant::now();
        while names(&file).is_empty() {
            assert!(start.elapsed() < START_MAX, "the task does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let pid = task.until("RUNNING");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let (_, rest) = stat.rsplit_once(')').expect("a stat line");
        let shim = rest.split_ascii_whitespace().nth(1).expect("a parent");
        let shim = Pid::from_raw(shim.parse().expect("a number")).expect("a pid");
        kill_process(shim, Signal::KILL).expect("the shim is there");
        let _ = hooked.join().expect("ctr ends");
    });
    ctr(["task", "rm", "--force", task.id()]);
    assert_eq!(names(&file), ["poststart", "poststop", "last"]);
    leftovers::expect_none_but_fifos_since(&before);
}

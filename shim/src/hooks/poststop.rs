//! The hooks of `Delete`, and of the `delete` action after the shim's death.
//!
//! The journal says that the hooks are owed before a hook of `Create` runs, and of each hook of poststop
//! that it was started. So no hook is left out and no hook runs twice, whichever process dies: a hook that
//! was started runs on without the shim, and the process that deletes the task waits for it.

use std::path::Path;
use std::time::Duration;

use super::HookError;
use super::run::{Call, Running};
use crate::bundle::{Hook, HookState, Stage};
use crate::error::chain;
use crate::host_process::{HostProcess, start_time};
use crate::journal::{self, Step};

/// How long a hook that an earlier shim started is waited for. containerd gives `delete` 5 s.
const ADOPTED_MAX: Duration = Duration::from_secs(3);

/// Runs the hooks that are still owed. Failures are warnings: nothing of the task is left, and the
/// specification has the rest run all the same.
pub(crate) fn run_poststop(root: &Path, namespace: &str, id: &str, steps: &[Step]) {
    let Some((hooks, state)) = owed(steps) else {
        return;
    };
    let started = steps.iter().filter_map(|step| match step {
        Step::PoststopHook {
            index,
            pid,
            start_time,
        } => Some((*index, *pid, *start_time)),
        _ => None,
    });
    let next = started.max().map_or(0, |(index, pid, start_time)| {
        adopt(id, pid, start_time);
        index + 1
    });
    for (index, hook) in hooks.iter().enumerate().skip(next) {
        let call = Call {
            stage: Stage::Poststop,
            index,
            hook,
        };
        let note = |pid| note(root, namespace, id, index, pid);
        if let Err(error) = run(call, state, note) {
            tracing::warn!(task_id = id, error = chain(&error), "a hook failed");
        }
    }
}

fn owed(steps: &[Step]) -> Option<(&[Hook], &HookState)> {
    steps.iter().find_map(|step| match step {
        Step::Poststop { hooks, state } => Some((hooks.as_slice(), state)),
        _ => None,
    })
}

fn run(call: Call<'_>, state: &HookState, note: impl FnOnce(u32)) -> Result<(), HookError> {
    let running = Running::spawn(call, state)?;
    note(running.pid());
    running.finish(None)
}

fn note(root: &Path, namespace: &str, id: &str, index: usize, pid: u32) {
    let noted = start_time(pid).map(|start_time| Step::PoststopHook {
        index,
        pid,
        start_time,
    });
    let noted = noted
        .map_err(|error| error.to_string())
        .and_then(|step| journal::append(root, namespace, id, &step).map_err(|e| chain(&e)));
    if let Err(error) = noted {
        tracing::warn!(task_id = id, error, "cannot note that a hook was started");
    }
}

fn adopt(id: &str, pid: u32, start_time: u64) {
    let ended = match HostProcess::find(pid, start_time) {
        Ok(None) => Ok(true),
        Ok(Some(process)) => process.wait_blocking(ADOPTED_MAX),
        Err(error) => Err(error),
    };
    if !matches!(ended, Ok(true)) {
        tracing::warn!(
            task_id = id,
            pid,
            "a hook that was started before still runs"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::HookStatus;
    use crate::cleanup;
    use crate::journal::Journal;
    use std::fs;
    use std::process::Command;
    use tempfile::tempdir;

    /// Appends its standard input to `file`, and its name.
    fn hook(name: &str, file: &Path) -> Hook {
        let script = format!("cat >>{0}; echo \" $0\" >>{0}", file.display());
        Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script, name.into()],
            env: vec!["PATH=/usr/bin:/bin".into()],
            timeout: None,
        }
    }

    fn state() -> HookState {
        HookState {
            oci_version: "1.1.0".into(),
            id: "web".into(),
            status: HookStatus::Stopped,
            pid: None,
            bundle: "/b".into(),
            annotations: Default::default(),
        }
    }

    fn names(file: &Path) -> Vec<String> {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .filter_map(|line| Some(line.rsplit_once(' ')?.1.to_owned()))
            .collect()
    }

    #[test]
    fn what_is_owed_runs_once_in_order_and_failures_stop_nothing() {
        let root = tempdir().unwrap();
        let file = root.path().join("ran");
        let journal =
            Journal::create(root.path(), "default", "web", Path::new("/b"), None).unwrap();
        let absent = Hook {
            path: "/nonexistent".into(),
            ..hook("absent", &file)
        };
        let hooks = vec![hook("one", &file), absent, hook("two", &file)];
        let state = state();
        journal.record(&Step::Poststop { hooks, state }).unwrap();
        // The program's end is not the task's.
        cleanup::release(root.path(), "default", "web").unwrap();
        assert!(names(&file).is_empty());
        cleanup::undo(root.path(), "default", "web").unwrap();
        assert_eq!(names(&file), ["one", "two"]);
        cleanup::undo(root.path(), "default", "web").unwrap();
        assert_eq!(names(&file), ["one", "two"]);
        let text = fs::read_to_string(&file).unwrap();
        let golden = r#"{"ociVersion":"1.1.0","id":"web","status":"stopped","bundle":"/b"} one"#;
        assert_eq!(text.lines().next(), Some(golden));
    }

    #[test]
    fn a_hook_that_a_dead_shim_started_is_waited_for_and_not_run_again() {
        let root = tempdir().unwrap();
        let file = root.path().join("ran");
        let journal =
            Journal::create(root.path(), "default", "web", Path::new("/b"), None).unwrap();
        let hooks = vec![hook("one", &file), hook("two", &file)];
        let state = state();
        journal.record(&Step::Poststop { hooks, state }).unwrap();
        let script = format!("sleep 0.3; echo ' one' >>{}", file.display());
        let mut first = Command::new("/bin/sh")
            .args(["-c", &script])
            .spawn()
            .unwrap();
        journal
            .record(&Step::PoststopHook {
                index: 0,
                pid: first.id(),
                start_time: start_time(first.id()).unwrap(),
            })
            .unwrap();
        cleanup::undo(root.path(), "default", "web").unwrap();
        assert_eq!(names(&file), ["one", "two"]);
        assert!(first.wait().is_err(), "ended and reaped");
    }
}

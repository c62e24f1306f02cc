//! Containers and tasks, as `ctr` makes them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::containerd;
use crate::ctr::{Outcome, RUNTIME, ctr, ctr_in_background, ctr_with_stdin, import_image, run};
use crate::terminal::Terminal;

/// How long a task may take to reach a state, under emulation and with a compile before it.
const STATE_MAX: Duration = Duration::from_secs(120);

/// Between two looks: `ctr` takes the processor from what it waits for.
const POLL: Duration = Duration::from_millis(100);

/// A `ctr run` in the making.
#[derive(Clone, Debug)]
pub struct Run {
    image: String,
    id: String,
    options: Vec<String>,
    arguments: Vec<String>,
    stdin: Vec<u8>,
}

impl Run {
    /// Runs the example image of this name.
    #[must_use]
    pub fn image(name: &str) -> Self {
        import_image(name);
        Self {
            image: format!("wasmvm.example/{name}:latest"),
            id: fresh_id(),
            options: Vec::new(),
            arguments: Vec::new(),
            stdin: Vec::new(),
        }
    }

    /// Uses this id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.into();
        self
    }

    /// Adds an option of `ctr run`.
    #[must_use]
    pub fn option(mut self, option: &str, value: &str) -> Self {
        self.options.extend([option.into(), value.into()]);
        self
    }

    /// Adds an option of `ctr run` that has no value.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.options.push(flag.into());
        self
    }

    /// Replaces the image's command line.
    #[must_use]
    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments = arguments.map(String::from).to_vec();
        self
    }

    /// Replaces the image's command line.
    #[must_use]
    pub fn args_vec(mut self, arguments: Vec<String>) -> Self {
        self.arguments = arguments;
        self
    }

    /// Gives it a standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// The task that this run will make.
    #[must_use]
    pub fn task(&self) -> Task {
        Task {
            id: self.id.clone(),
        }
    }

    /// The name of the image.
    pub(crate) fn image_name(&self) -> &str {
        &self.image
    }

    /// The id that the task will have.
    pub(crate) fn task_id(&self) -> &str {
        &self.id
    }

    /// `ctr run --rm`, to the end.
    #[must_use]
    #[track_caller]
    pub fn to_end(self) -> Outcome {
        let line = self.line("--rm");
        ctr_with_stdin(line, self.stdin)
    }

    /// The same with its spec changed before: for what `ctr run` has no option for. The root file
    /// system is the image's, mounted for the time of the run.
    ///
    /// # Panics
    /// When the image cannot be mounted.
    #[must_use]
    #[track_caller]
    pub fn with_spec(self, change: impl FnOnce(&mut serde_json::Value)) -> Outcome {
        let folder = tempfile::tempdir().expect("a folder");
        let rootfs = folder.path().join("rootfs");
        fs::create_dir(&rootfs).expect("a folder");
        let rootfs = rootfs.to_str().expect("a path of ours is text");
        let mut spec = spec_of(&self);
        spec["root"]["path"] = rootfs.into();
        change(&mut spec);
        ctr(["images", "mount", "--rw", &self.image, rootfs]).expect_status(0);
        let outcome = run_spec(
            &self.id,
            folder.path(),
            spec.to_string().as_bytes(),
            self.stdin,
        );
        ctr(["images", "unmount", "--rm", rootfs]).expect_status(0);
        outcome
    }

    /// `ctr run --rm` with another program, such as a shell, in front: for pipes of its own.
    #[must_use]
    #[track_caller]
    pub fn through(self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("ctr")
            .args(self.line("--rm"))
            .env("CONTAINERD_ADDRESS", containerd::address());
        run(command, self.stdin)
    }

    /// `ctr run` in the background of this test, with its output piped and nobody reading it yet.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn in_background(self) -> (Task, Child) {
        let task = self.task();
        (task, ctr_in_background(self.line("--rm")))
    }

    /// `ctr run --tty`, on a terminal of its own.
    #[must_use]
    #[track_caller]
    pub fn on_terminal(self) -> (Task, Terminal) {
        let task = self.task();
        (task, Terminal::of_ctr(self.flag("--tty").line("--rm")))
    }

    /// `ctr run -d`: returns when the task runs.
    #[must_use]
    #[track_caller]
    pub fn detached(self) -> Task {
        let task = self.task();
        ctr(self.line("--detach")).expect_status(0);
        task
    }

    fn line(&self, how: &str) -> Vec<String> {
        let mut line = vec!["run".into(), how.into(), "--runtime".into(), RUNTIME.into()];
        line.extend(self.options.iter().cloned());
        line.extend([self.image.clone(), self.id.clone()]);
        line.extend(self.arguments.iter().cloned());
        line
    }
}

/// A container with its task; both are removed when the test is done with it.
#[derive(Debug)]
pub struct Task {
    id: String,
}

impl Task {
    /// containerd's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sends a signal, by name.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        ctr(["task", "kill", "--signal", signal, &self.id]).expect_status(0);
    }

    /// The pids of the task's programs as `ctr task ps` shows them, init's first.
    #[must_use]
    #[track_caller]
    pub fn pids(&self) -> Vec<u32> {
        let listing = ctr(["task", "ps", &self.id]).expect_status(0).text();
        let pids = listing.lines().skip(1);
        pids.filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok())
            .collect()
    }

    /// The pid and the state as `ctr task ls` shows them; `None` when there is no such task.
    #[must_use]
    #[track_caller]
    pub fn state(&self) -> Option<(u32, String)> {
        let listing = ctr(["task", "ls"]).expect_status(0).text();
        listing.lines().find_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            (columns.next()? == self.id).then_some(())?;
            Some((columns.next()?.parse().ok()?, columns.next()?.to_owned()))
        })
    }

    /// Waits until `ctr task ls` shows the state; returns the pid.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn until(&self, wanted: &str) -> u32 {
        let start = Instant::now();
        loop {
            let state = self.state();
            if let Some((pid, found)) = &state
                && found == wanted
            {
                return *pid;
            }
            assert!(
                start.elapsed() < STATE_MAX,
                "{} is {state:?}, not {wanted}",
                self.id
            );
            thread::sleep(POLL);
        }
    }

    /// `ctr task delete` of a task that has ended; returns the program's status, which `ctr` mentions unless it is 0.
    ///
    /// # Panics
    /// When it cannot be deleted.
    #[must_use]
    #[track_caller]
    pub fn delete(&self) -> i32 {
        const MENTION: &str = "non-zero exit code ";
        let said = ctr(["task", "delete", &self.id]).expect_status(0).error();
        said.split_once(MENTION).map_or(0, |(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number")
        })
    }

    /// `ctr task rm --force`: kills it when it runs. The container stays.
    pub fn remove_task(&self) {
        ctr(["task", "rm", "--force", &self.id]);
    }

    /// Removes the container of a task that is deleted: containerd refuses while there is one.
    ///
    /// # Panics
    /// When it refuses.
    #[track_caller]
    pub fn forget(self) {
        ctr(["container", "rm", &self.id]).expect_status(0);
        // Nothing is left for its drop.
        std::mem::forget(self);
    }

    /// Removes task and container as an operator does: `ctr task rm -f`, `ctr container rm`. What is
    /// gone already is no error.
    pub fn remove(&self) {
        self.remove_task();
        ctr(["container", "rm", &self.id]);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The spec that `ctr run` would give to the container.
///
/// # Panics
/// When the container cannot be made.
#[must_use]
#[track_caller]
pub fn spec_of(run: &Run) -> serde_json::Value {
    let id = fresh_id();
    let mut line = vec![
        "container".into(),
        "create".into(),
        "--runtime".into(),
        RUNTIME.into(),
    ];
    line.extend(run.options.iter().cloned());
    line.extend([run.image.clone(), id.clone()]);
    line.extend(run.arguments.iter().cloned());
    ctr(line).expect_status(0);
    let info = ctr(["container", "info", &id]).expect_status(0);
    ctr(["container", "rm", &id]).expect_status(0);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
    info["Spec"].clone()
}

/// `ctr run --rm --config` with these bytes as the spec.
///
/// # Panics
/// When the spec cannot be written.
#[must_use]
#[track_caller]
pub fn run_spec(id: &str, folder: &Path, spec: &[u8], stdin: Vec<u8>) -> Outcome {
    let config = folder.join("config.json");
    fs::write(&config, spec).expect("written");
    let config = config.to_str().expect("a path of ours is text");
    let line = ["run", "--rm", "--runtime", RUNTIME, "--config", config, id];
    let outcome = ctr_with_stdin(line, stdin);
    ctr(["task", "rm", "--force", id]);
    ctr(["container", "rm", id]);
    outcome
}

/// An id that no other test of this run has.
#[must_use]
pub fn fresh_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

//! One `ctr` command, bounded in time.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::containerd;

/// The runtime under test.
pub const RUNTIME: &str = "io.containerd.wasmvm.v1";
/// No command takes longer, under emulation and with a compile in it.
pub const COMMAND_MAX: Duration = Duration::from_secs(180);

/// What a command has printed and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; 128 + n when it was ended by signal n.
    pub status: i32,
    /// Standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Wall clock.
    pub took: Duration,
}

impl Outcome {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the command ended with `status`.
    ///
    /// # Panics
    /// With everything that the command said.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Fails the test unless the command failed with all of `parts` in what it said.
    ///
    /// # Panics
    /// With everything that the command said.
    #[track_caller]
    pub fn expect_refusal(self, parts: &[&str]) -> Self {
        assert_ne!(self.status, 0, "{self}");
        for part in parts {
            assert!(self.error().contains(part), "no {part:?} in: {self}");
        }
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        write!(
            f,
            "`{}` ended with {} after {:.1?}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.took,
            shown(&self.stdout),
            shown(&self.stderr)
        )
    }
}

/// Runs `ctr` with these arguments and an empty standard input.
///
/// # Panics
/// When it cannot be started or takes too long.
#[track_caller]
pub fn ctr<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Outcome {
    ctr_with_stdin(arguments, Vec::new())
}

/// Runs `ctr` with these arguments and this standard input.
///
/// # Panics
/// When it cannot be started or takes too long.
#[track_caller]
pub fn ctr_with_stdin<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    stdin: Vec<u8>,
) -> Outcome {
    let mut command = containerd::ctr_command();
    command.args(arguments);
    run(command, stdin)
}

/// Starts `ctr` with these arguments, with its streams piped and nobody at them yet.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn ctr_in_background<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Child {
    spawn(containerd::ctr_command().args(arguments))
}

/// Imports an example image, once for all tests that want it.
///
/// # Panics
/// When there is none of this name.
pub fn import_image(name: &str) {
    static IMPORTED: Mutex<BTreeSet<(OsString, String)>> = Mutex::new(BTreeSet::new());
    // A test that failed here has said so; the next one tries for itself.
    let mut imported = IMPORTED.lock().unwrap_or_else(PoisonError::into_inner);
    let image = (containerd::address(), name.to_owned());
    if imported.contains(&image) {
        return;
    }
    ctr(["images", "import", &image_archive(name)]).expect_status(0);
    imported.insert(image);
}

/// The archive of an example image.
///
/// # Panics
/// When nothing says where they are.
#[must_use]
pub fn image_archive(name: &str) -> String {
    let images = std::env::var("WASMVM_IMAGES")
        .expect("WASMVM_IMAGES names the folder of the example images; tests/run-e2e sets it");
    format!("{images}/{name}.tar")
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started or takes too long.
#[track_caller]
pub fn run(mut command: Command, stdin: Vec<u8>) -> Outcome {
    let line = format!("{command:?}");
    let start = Instant::now();
    let mut child = spawn(&mut command);
    let mut input = child.stdin.take().expect("piped");
    // The program may end without reading all of it.
    let writer = thread::spawn(move || drop(input.write_all(&stdin)));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let ended = wait(&mut child, COMMAND_MAX);
    let status = child.wait().expect("the child can be waited for");
    drop(writer);
    let outcome = Outcome {
        command: line,
        status: exit_status(status),
        stdout: stdout.join().expect("the reader ends"),
        stderr: stderr.join().expect("the reader ends"),
        took: start.elapsed(),
    };
    assert!(ended, "killed after {COMMAND_MAX:?}: {outcome}");
    outcome
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("cannot run {command:?}: {err}"))
}

fn collect(mut source: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What arrived before an error is what there is to look at.
        let _ = source.read_to_end(&mut bytes);
        bytes
    })
}

/// Waits for the child's end: whether it came. After `limit` the child is killed.
///
/// # Panics
/// When the child cannot be watched.
#[must_use]
pub fn wait(child: &mut Child, limit: Duration) -> bool {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("a pid");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("an unreaped child has a pidfd");
    let limit = Timespec::try_from(limit).expect("a short time");
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) == Ok(1);
    if !ended {
        child.kill().expect("the child can be killed");
    }
    ended
}

fn exit_status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

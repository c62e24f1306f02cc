//! Tasks outlive containerd: while it is away, a program runs on, prints, and ends, and its status is kept.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wasmvm_tests::containerd::{Containerd, Version};
use wasmvm_tests::leftovers;
use wasmvm_tests::task::{Run, Task};

/// A task that nobody reads from must still end: the output is waited for at most 10 s.
const END_MAX: Duration = Duration::from_secs(60);

/// A detached task whose FIFOs are in a folder of the test.
struct Detached {
    task: Task,
    pid: u32,
    folder: TempDir,
}

fn detached<const N: usize>(arguments: [&str; N]) -> Detached {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path of ours is text");
    let task = Run::image("probe")
        .option("--fifo-dir", path)
        .args(arguments)
        .detached();
    let pid = task.until("RUNNING");
    Detached { task, pid, folder }
}

impl Detached {
    /// The program's standard output, as its next client would open it.
    fn output(&self) -> File {
        let fifo = find(self.folder.path(), "-stdout").expect("containerd has made a FIFO");
        File::open(fifo).expect("the shim keeps a writer")
    }
}

/// The file below `folder` whose name ends so.
fn find(folder: &Path, end: &str) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return find(&path, end);
        }
        path.to_str()?.ends_with(end).then_some(path)
    })
}

/// All of it, once the program has ended.
fn rest_of(mut output: File) -> String {
    let mut text = String::new();
    output.read_to_string(&mut text).expect("it ends");
    text
}

#[test]
fn a_stopped_containerd_finds_its_task_again() {
    let before = leftovers::found();
    let mut containerd = Containerd::start(Version::Installed);
    let detached = detached(["/probe", "loop"]);
    containerd.stop();
    containerd.start_again();
    assert_eq!(detached.task.until("RUNNING"), detached.pid);
    detached.task.kill("SIGTERM");
    detached.task.until("STOPPED");
    assert_eq!(detached.task.delete(), 143);
    assert_eq!(detached.task.state(), None);
    drop(detached);
    leftovers::expect_none_since(&before);
}

#[test]
fn what_a_program_prints_while_containerd_is_dead_arrives() {
    let before = leftovers::found();
    let mut containerd = Containerd::start(Version::Installed);
    let detached = detached(["/probe", "sleep", "1500"]);
    let output = detached.output();
    containerd.kill();
    // To its end, which it reaches without containerd.
    assert!(rest_of(output).ends_with("awake\n"));
    containerd.start_again();
    detached.task.until("STOPPED");
    assert_eq!(detached.task.delete(), 0);
    drop(detached);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_vm_that_died_while_containerd_was_dead_is_137() {
    let before = leftovers::found();
    let mut containerd = Containerd::start(Version::Installed);
    let detached = detached(["/probe", "loop"]);
    containerd.kill();
    let pid = i32::try_from(detached.pid).expect("a pid");
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("the VMM runs");
    containerd.start_again();
    detached.task.until("STOPPED");
    assert_eq!(detached.task.delete(), 137);
    drop(detached);
    leftovers::expect_none_since(&before);
}

#[test]
fn output_without_a_reader_holds_nothing_up() {
    let before = leftovers::found();
    let detached = detached(["/probe", "spam", "20"]);
    ends_promptly(&detached.task);
    drop(detached);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_reader_that_is_stuck_holds_nothing_up() {
    let before = leftovers::found();
    let detached = detached(["/probe", "spam", "20"]);
    let stuck = detached.output();
    ends_promptly(&detached.task);
    drop(stuck);
    drop(detached);
    leftovers::expect_none_since(&before);
}

/// A program in the middle of a write that nobody takes.
fn ends_promptly(task: &Task) {
    let start = Instant::now();
    task.kill("SIGKILL");
    task.until("STOPPED");
    assert_eq!(task.delete(), 137);
    assert_eq!(task.state(), None);
    assert!(start.elapsed() < END_MAX, "took {:?}", start.elapsed());
}

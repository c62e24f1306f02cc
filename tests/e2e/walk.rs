//! The fault walk: `kill -9` of shim, VMM or containerd at every step of a task's journal, from `start` to the end
//! of Delete. Wherever exactly the kill lands: containerd sees an end, and after `rm` nothing is left.
//!
//! The steps are watched from outside: the socket that `start` binds, each line that the shim adds to
//! `/run/wasmvm/tasks/<namespace>/<id>/journal`, and that file's removal. A walk goes on until a step does not come any
//! more, so what a later version adds to the journal is walked too.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use wasmvm_tests::containerd::{Containerd, Version};
use wasmvm_tests::leftovers;
use wasmvm_tests::process;
use wasmvm_tests::task::{Run, Task};

/// How long a step may take to come, and containerd to see an end.
const STEP_MAX: Duration = Duration::from_secs(90);
/// No journal is as long.
const STEPS_MAX: usize = 20;
/// Nor as short: the bundle, the cgroup, the VMM, the exit, the end.
const STEPS_MIN: usize = 4;
/// A shim without a task ends after a minute.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// Between two looks.
const POLL: Duration = Duration::from_millis(200);
const SOCKETS: &str = "/run/containerd/s";
const STATE: &str = "/run/wasmvm/tasks";

/// Where a kill lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// `start` has bound its socket.
    Socket,
    /// The journal has so many lines.
    Lines(usize),
    /// The journal is gone again: Delete is about to answer.
    Gone,
}

#[test]
fn kill_9_of_start_leaves_nothing_after_the_next_start() {
    warm_up();
    let before = leftovers::found();
    let (task, reached) = one(Step::Socket, |id| kill_all(&shims(id)));
    assert!(reached);
    task.remove();
    // containerd tells nobody of a `start` that failed: its socket is replaced by the next one of this id.
    let _ = Run::image("tiny").id(task.id()).to_end().expect_status(0);
    leftovers::expect_none_but_fifos_since(&before);
}

#[test]
fn kill_9_of_the_shim_at_every_step() {
    warm_up();
    let before = leftovers::found();
    let mut kill = |id: &str| kill_all(&shims(id));
    walk_the_journal(1, &mut kill);
    assert!(walk(Step::Gone, &mut kill));
    leftovers::expect_none_but_fifos_since(&before);
}

#[test]
fn kill_9_of_the_vmm_at_every_step() {
    warm_up();
    let before = leftovers::found();
    // Before the fourth line there is none.
    walk_the_journal(4, &mut |_| kill_all(&process::named("wasmvm-vmm")));
    leftovers::expect_none_but_fifos_since(&before);
}

#[test]
fn kill_9_of_containerd_at_every_step() {
    let mut containerd = Containerd::start(Version::Installed);
    warm_up();
    let before = leftovers::found();
    let mut kill = |_: &str| {
        containerd.kill();
        containerd.start_again();
    };
    assert!(walk(Step::Socket, &mut kill));
    walk_the_journal(1, &mut kill);
    assert!(walk(Step::Gone, &mut kill));
    // A shim whose containerd does not know of it goes by itself.
    leftovers::expect_none_but_fifos_within(IDLE_MAX, &before);
}

/// Imports the image and has the module compiled.
fn warm_up() {
    let _ = Run::image("tiny").to_end().expect_status(0);
}

/// Kills at the line `first`, the next, and so on, until the task has no more.
fn walk_the_journal(first: usize, kill: &mut impl FnMut(&str)) {
    let end = (first..STEPS_MAX).find(|n| !walk(Step::Lines(*n), &mut *kill));
    let end = end.expect("a journal has an end");
    assert!(end > STEPS_MIN, "only {end} lines were seen");
}

/// One task with a kill at `step`, removed afterwards; false when it ended without coming there.
fn walk(step: Step, kill: impl FnMut(&str)) -> bool {
    let (task, reached) = one(step, kill);
    remove(&task);
    reached
}

/// One task with a kill at `step`; whether it came there.
fn one(step: Step, mut kill: impl FnMut(&str)) -> (Task, bool) {
    let run = Run::image("tiny");
    let task = run.task();
    let watch = Watch::of(&task);
    let client = thread::spawn(move || run.to_end());
    let reached = watch.until(step, || client.is_finished());
    if reached {
        kill(task.id());
    }
    let outcome = client.join().expect("ctr ends");
    eprintln!("{step:?}: reached {reached}, {outcome}");
    (task, reached)
}

/// As an operator does, who looks again: a Create that outlives the containerd that asked for it makes a task later.
fn remove(task: &Task) {
    let start = Instant::now();
    let journal = Path::new(STATE).join("default").join(task.id());
    loop {
        let state = task.state();
        if state.as_ref().is_some_and(|(_, state)| state != "RUNNING") {
            task.remove_task();
        }
        if state.is_none() && !journal.exists() {
            return;
        }
        let waited = start.elapsed();
        assert!(waited < STEP_MAX, "{} is {state:?} for ever", task.id());
        thread::sleep(POLL);
    }
}

/// Looks at the folders in which the steps of a task show.
struct Watch {
    events: OwnedFd,
    folders: [PathBuf; 4],
    sockets: Vec<PathBuf>,
}

impl Watch {
    fn of(task: &Task) -> Self {
        let namespace = Path::new(STATE).join("default");
        let state = namespace.join(task.id());
        Self {
            events: inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
                .expect("inotify"),
            folders: [SOCKETS.into(), STATE.into(), namespace, state],
            sockets: names(SOCKETS),
        }
    }

    /// Waits for the step; false when `over` and it has not come.
    fn until(&self, step: Step, over: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        let mut seen = false;
        loop {
            self.watch_what_exists();
            let ended = over();
            let lines = self.lines();
            seen |= lines > 0;
            let reached = match step {
                Step::Socket => names(SOCKETS)
                    .iter()
                    .any(|name| !self.sockets.contains(name)),
                Step::Lines(wanted) => lines >= wanted,
                Step::Gone => seen && lines == 0,
            };
            if reached || ended {
                return reached;
            }
            assert!(start.elapsed() < STEP_MAX, "{step:?} does not come");
            self.wait();
        }
    }

    /// A folder that is made later shows in its parent, and is watched from then on.
    fn watch_what_exists(&self) {
        use inotify::WatchFlags as Flags;
        let flags = Flags::CREATE | Flags::DELETE | Flags::MODIFY | Flags::MOVED_TO;
        for folder in &self.folders {
            // Not there yet, or not any more.
            let _ = inotify::add_watch(&self.events, folder, flags);
        }
    }

    fn lines(&self) -> usize {
        let journal = self.folders[3].join("journal");
        fs::read(journal).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
    }

    /// Until something changes; the client's end shows nowhere, so it is looked for now and then.
    fn wait(&self) {
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 200_000_000,
        };
        let mut fds = [PollFd::new(&self.events, PollFlags::IN)];
        if poll(&mut fds, Some(&moment)) == Ok(1) {
            let mut events = [0; 4096];
            let _ = rustix::io::read(&self.events, &mut events);
        }
    }
}

fn names(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The task's daemon, and `start` while it runs. `delete` is containerd's way to clean up: left alone.
fn shims(id: &str) -> Vec<u32> {
    let mut shims = process::named("containerd-shim");
    shims.retain(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split('\0').collect();
        words.contains(&id) && !words.contains(&"delete")
    });
    shims
}

/// What has ended meanwhile needs no kill.
fn kill_all(pids: &[u32]) {
    for pid in pids {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        let _ = kill_process(pid.expect("a pid"), Signal::KILL);
    }
}

//! Many tasks, one to eight at once, each with a random life: execs, pauses, updates of its limits, and one of many
//! ends. All must go as it should, nothing is left, and the shim of a task that was there all the time has not grown.
//!
//! `WASMVM_SOAK_TASKS` says how many (40); `WASMVM_SOAK_SEED` repeats a run, whose seed it has printed.

use std::fs;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use wasmvm_tests::ctr::ctr;
use wasmvm_tests::exec::Exec;
use wasmvm_tests::task::{Run, Task};
use wasmvm_tests::{leftovers, process, shim};

const TASKS: u64 = 40;
const AT_ONCE_MAX: u64 = 8;
const STEPS_MAX: u64 = 2;
/// By how much the witness's shim may grow: what an allocator keeps.
const GROWTH_KIB_MAX: u64 = 2048;
/// How long containerd may take to see an end.
const SEEN_MAX: Duration = Duration::from_secs(90);
/// Between two looks.
const POLL: Duration = Duration::from_millis(200);
/// Starting at once. An emulated processor boots one after another, and each has but a minute.
const STARTING_MAX: usize = 3;
static DOORS: [Mutex<()>; STARTING_MAX] = [const { Mutex::new(()) }; STARTING_MAX];
const MIB: u64 = 1 << 20;

#[test]
fn random_lives_leave_nothing_and_the_shim_as_it_was() {
    let tasks = number("WASMVM_SOAK_TASKS").unwrap_or(TASKS);
    let seed = number("WASMVM_SOAK_SEED").unwrap_or_else(now);
    eprintln!("soak: {tasks} tasks, WASMVM_SOAK_SEED={seed}");
    let before = leftovers::found();
    let witness = Witness::start();
    let mut random = Random(seed);
    let mut left = tasks;
    while left > 0 {
        let at_once = left.min(1 + random.below(AT_ONCE_MAX));
        let lives: Vec<_> = (0..at_once)
            .map(|_| Random(random.next()))
            .map(|random| thread::spawn(move || live(random)))
            .collect();
        for life in lives {
            life.join().expect("the life went as it should");
        }
        witness.visit();
        left -= at_once;
        eprintln!("soak: {left} tasks left");
    }
    witness.end();
    leftovers::expect_none_but_fifos_since(&before);
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, no number")),
    )
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// `SplitMix64`: small, and good enough to choose.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One task from its start to its removal.
fn live(mut random: Random) {
    if random.below(4) == 0 {
        return runs_to_its_end(&mut random);
    }
    let task = start(&mut random);
    let mut paused = false;
    for _ in 0..random.below(STEPS_MAX + 1) {
        match random.below(3) {
            0 if !paused => exec(&task, &mut random),
            1 => {
                ctr(["task", if paused { "resume" } else { "pause" }, task.id()]).expect_status(0);
                paused = !paused;
            }
            _ => update(&task, &mut random),
        }
    }
    end(task, paused, &mut random);
}

fn start(random: &mut Random) -> Task {
    let run = Run::image("busybox")
        .args(["sh", "-c", "while true; do sleep 1; done"])
        .option("--memory-limit", &(128 * MIB).to_string())
        .flag("--null-io");
    let door = usize::try_from(random.below(STARTING_MAX as u64)).expect("a small number");
    let _turn = DOORS[door].lock().unwrap_or_else(PoisonError::into_inner);
    run.detached()
}

/// With a status and an output of its own.
fn runs_to_its_end(random: &mut Random) {
    let (word, status) = (random.next(), random.below(256));
    let script = format!("echo {word}; exit {status}");
    let outcome = Run::image("busybox")
        .args(["sh", "-c", &script])
        .to_end()
        .expect_status(i32::try_from(status).expect("a status"));
    assert_eq!(outcome.text(), format!("{word}\n"));
}

fn exec(task: &Task, random: &mut Random) {
    let (word, status) = (random.next(), random.below(256));
    let script = format!("echo {word}; exit {status}");
    let outcome = Exec::of(task, ["sh", "-c", &script])
        .to_end()
        .expect_status(i32::try_from(status).expect("a status"));
    assert_eq!(outcome.text(), format!("{word}\n"));
}

fn update(task: &Task, random: &mut Random) {
    let limit = (96 + random.below(64)) * MIB;
    let resources =
        json!({ "memory": { "limit": limit }, "cpu": { "shares": 2 + random.below(1000) } });
    shim::update(task.id(), &resources).expect("the limits change");
}

/// One of the ends that a task may come to; then it is removed.
fn end(task: Task, paused: bool, random: &mut Random) {
    let (pid, _) = task.state().expect("it is there");
    // SIGTERM waits until a paused task goes on.
    match random.below(if paused { 3 } else { 5 }) {
        0 => ended(task, "SIGKILL", 137),
        1 => {
            kill(pid);
            stopped(task, 137);
        }
        2 => {
            kill(process::parent_of(pid));
            gone(&task);
        }
        3 => ended(task, "SIGTERM", 143),
        _ => ended(task, "SIGINT", 130),
    }
}

fn ended(task: Task, signal: &str, status: i32) {
    task.kill(signal);
    stopped(task, status);
}

fn stopped(task: Task, status: i32) {
    task.until("STOPPED");
    assert_eq!(task.delete(), status);
    task.forget();
}

/// Waits until containerd has cleaned up after the shim's death.
fn gone(task: &Task) {
    let start = Instant::now();
    while task.state().is_some_and(|(_, state)| state != "STOPPED") {
        assert!(
            start.elapsed() < SEEN_MAX,
            "containerd has not seen the shim's death"
        );
        thread::sleep(POLL);
    }
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("it runs");
}

/// A task that is there all the time.
struct Witness {
    task: Task,
    shim: u32,
    descriptors: usize,
    resident_kib: u64,
}

impl Witness {
    fn start() -> Self {
        let task = Run::image("busybox")
            .args(["sh", "-c", "while true; do sleep 1; done"])
            .flag("--null-io")
            .detached();
        let shim = process::parent_of(task.until("RUNNING"));
        let mut witness = Self {
            task,
            shim,
            descriptors: 0,
            resident_kib: 0,
        };
        // The first visit makes what stays.
        witness.visit();
        witness.descriptors = descriptors(shim);
        witness.resident_kib = resident_kib(shim);
        witness
    }

    /// Each of the things that could leave something in its shim.
    fn visit(&self) {
        let mut random = Random(0);
        exec(&self.task, &mut random);
        ctr(["task", "pause", self.task.id()]).expect_status(0);
        ctr(["task", "resume", self.task.id()]).expect_status(0);
        update(&self.task, &mut random);
    }

    fn end(self) {
        // A connection may just be closing, as it may have been when they were counted first.
        let deadline = Instant::now() + SEEN_MAX;
        while descriptors(self.shim) > self.descriptors {
            let now = descriptors(self.shim);
            assert!(
                Instant::now() < deadline,
                "the shim had {} descriptors and has {now}",
                self.descriptors
            );
            thread::sleep(POLL);
        }
        let resident = resident_kib(self.shim);
        assert!(
            resident <= self.resident_kib + GROWTH_KIB_MAX,
            "the shim grew from {} to {resident} KiB",
            self.resident_kib
        );
        ended(self.task, "SIGKILL", 137);
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process")
        .count()
}

fn resident_kib(pid: u32) -> u64 {
    let mut text = String::new();
    let mut file = fs::File::open(format!("/proc/{pid}/status")).expect("a process");
    file.read_to_string(&mut text).expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

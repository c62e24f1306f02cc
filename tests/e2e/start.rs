//! How a program is found, entered, and what it is told when it starts.

use std::io::{BufRead, BufReader, Lines};
use std::process::ChildStdout;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use wasmvm_tests::cgroup::Cgroup;
use wasmvm_tests::ctr::{Outcome, RUNTIME, ctr, image_archive};
use wasmvm_tests::exec::Exec;
use wasmvm_tests::task::{Run, fresh_id};

/// `ctr run` of the image with the platform `wasi/wasm`.
fn run_wasi(arguments: &[&str]) -> Outcome {
    const PLATFORM: [&str; 2] = ["--platform", "wasi/wasm"];
    let id = fresh_id();
    let run = ["run", "--rm", "--runtime", RUNTIME];
    let image = ["wasmvm.example/tiny-wasi:latest", &id];
    let line = run.iter().chain(&PLATFORM).chain(&image).chain(arguments);
    ctr(line.copied().collect::<Vec<_>>())
}

#[test]
fn an_image_for_the_platform_wasi_runs_by_the_bare_name_of_its_module() {
    let archive = image_archive("tiny-wasi");
    ctr(["images", "import", "--platform", "wasi/wasm", &archive]).expect_status(0);
    assert_eq!(run_wasi(&[]).expect_status(0).text(), "tiny\n");
    let named = run_wasi(&["/app/tiny.wasm#_start"]).expect_status(0);
    assert_eq!(named.text(), "tiny\n");
    let _ = run_wasi(&["tiny.wasm#main"]).expect_refusal(&["no function `main`", "`_start`"]);
}

/// The values that this variable has in the output of `env`.
fn values<'a>(output: &'a str, name: &str) -> Vec<&'a str> {
    let lines = output.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(found, _)| *found == name)
        .map(|(_, value)| value)
        .collect()
}

#[test]
fn home_is_the_users_and_of_equal_variables_the_last_counts() {
    let script = "env; read line";
    let (task, child) = Run::image("busybox")
        .option("--env", "A=1")
        .option("--env", "A=2")
        .args(["sh", "-c", script])
        .in_background();
    task.until("RUNNING");
    let user = |user: &str| {
        let exec = Exec::of(&task, ["env"]).option("--user", user);
        exec.to_end().expect_status(0).text()
    };
    assert_eq!(values(&user("33:33"), "HOME"), ["/var/www"]);
    assert_eq!(values(&user("1234:1234"), "HOME"), ["/"]);
    let mut child = child;
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("ctr ends");
    let output = String::from_utf8(output.stdout).expect("text");
    assert_eq!(values(&output, "HOME"), ["/root"]);
    assert_eq!(values(&output, "A"), ["2"]);
}

/// What the host's clock is put forward by, for as long as this lives.
struct Step(i64);

impl Step {
    fn forward(seconds: i64) -> Self {
        set_by(seconds);
        Self(seconds)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        set_by(-self.0);
    }
}

fn set_by(seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec {
        tv_sec: now.tv_sec + seconds,
        ..now
    };
    clock_settime(ClockId::Realtime, then).expect("root may set the clock");
}

/// The next reading of `probe clocks`: wall clock in seconds, monotonic clock in milliseconds.
fn reading(lines: &mut Lines<BufReader<ChildStdout>>) -> (i64, u64) {
    let line = lines.next().expect("it never ends").expect("text");
    let (wall, monotonic) = line.split_once(' ').expect("two numbers");
    let wall = wall.parse().expect("a number");
    (wall, monotonic.parse().expect("a number"))
}

#[test]
fn the_wall_clock_follows_steps_of_the_hosts_and_monotonic_time_runs_on() {
    const STEP_S: i64 = 100;
    let (task, mut child) = Run::image("probe")
        .option("--cpu-shares", "1024")
        .args(["/probe", "clocks"])
        .in_background();
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let (_, started) = reading(&mut lines);
    let pid = task.until("RUNNING");
    let weight = Cgroup::of(pid, "cpu").read("cpu.weight", "cpu.shares");
    assert!(matches!(weight.as_str(), "100" | "1024"), "{weight}");
    let mut last = started;
    let mut follows = |lines: &mut Lines<BufReader<ChildStdout>>| {
        let from = last;
        loop {
            let (wall, monotonic) = reading(lines);
            assert!(monotonic >= last, "{monotonic} after {last}");
            last = monotonic;
            let host = clock_gettime(ClockId::Realtime).tv_sec;
            if wall.abs_diff(host) < STEP_S.unsigned_abs() / 2 {
                return;
            }
            let waited = last - from;
            assert!(
                waited < 10_000,
                "{wall} where the host has {host}, after {waited} ms"
            );
        }
    };
    follows(&mut lines);
    let step = Step::forward(STEP_S);
    follows(&mut lines);
    drop(step);
    follows(&mut lines);
    task.kill("SIGKILL");
    child.wait().expect("ctr ends");
}

//! Guests that have been taken over (`tests/hostile/init.c`): the host's processes stay bounded in time,
//! memory and words, other tasks run, and nothing is left.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use wasmvm_tests::cgroup::Cgroup;
use wasmvm_tests::ctr::{self, Outcome};
use wasmvm_tests::exec::Exec;
use wasmvm_tests::install::OtherAgent;
use wasmvm_tests::leftovers;
use wasmvm_tests::process::{named, parent_of, peak_kib};
use wasmvm_tests::shim::update;
use wasmvm_tests::task::{Run, Task};

/// What a guest is given to answer Create or Exec, seconds.
const LOAD_S_MAX: u64 = 15;
/// Around that a VM boots and ends, under emulation.
const CREATE_FAILS_MAX: Duration = Duration::from_secs(LOAD_S_MAX + 50);
/// From SIGKILL to the end of `ctr run`. The shim's own bounds add up to less than 15 s.
const KILL_MAX: Duration = Duration::from_secs(60);
/// Most memory a shim may ever have had, KiB.
const SHIM_KIB_MAX: u64 = 16 << 10;
/// Most that `ctr` may print of what a guest says, bytes.
const SENTENCE_BYTES_MAX: usize = 8 << 10;
/// Most that one guest may add to containerd's log, bytes.
const LOG_BYTES_MAX: u64 = 64 << 10;
/// The same where the operator wants to read the console: 200 lines of 512 bytes and what stands before.
const FORWARDED_BYTES_PER_SECOND_MAX: u64 = 200 * (512 + 256);
/// How long a line may take to reach the log, under emulation.
const SHOW_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the log.
const POLL: Duration = Duration::from_millis(100);

/// A run in a guest that does `mode`.
fn hostile(agent: &OtherAgent, mode: &str) -> Run {
    Run::image("tiny")
        .option("--runtime", &agent.runtime())
        .option("--env", &format!("HOSTILE={mode}"))
}

/// Settings with [`LOAD_S_MAX`], for the runtime's options.
fn impatient() -> tempfile::NamedTempFile {
    let mut settings = tempfile::NamedTempFile::new().expect("a file");
    writeln!(settings, "load_timeout_s = {LOAD_S_MAX}").expect("written");
    settings
}

/// The same, with these settings.
fn hostile_with(settings: &tempfile::NamedTempFile, agent: &OtherAgent, mode: &str) -> Run {
    let path = settings.path().to_str().expect("a path of ours is text");
    hostile(agent, mode).option("--runtime-config-path", path)
}

fn installed() -> OtherAgent {
    let files = std::env::var("WASMVM_FILES")
        .expect("WASMVM_FILES has hostile.cpio; tests/run-e2e sets it");
    OtherAgent::with(&PathBuf::from(files).join("hostile.cpio"))
}

/// Another tenant's task is none the worse.
#[track_caller]
fn an_ordinary_task_runs() {
    let outcome = Run::image("tiny").to_end().expect_status(0);
    assert_eq!(outcome.text(), "tiny\n");
}

#[track_caller]
fn expect_small(shim: u32) {
    let peak = peak_kib(shim).expect("the shim is there");
    println!("the shim's peak is {peak} KiB");
    assert!(peak <= SHIM_KIB_MAX, "a shim had {peak} KiB");
}

fn log_path() -> PathBuf {
    std::env::var_os("WASMVM_CONTAINERD_LOG")
        .expect("WASMVM_CONTAINERD_LOG names containerd's log; tests/where sets it")
        .into()
}

/// How much containerd and its shims have logged, bytes.
fn logged() -> u64 {
    fs::metadata(log_path())
        .expect("containerd has a log")
        .len()
}

#[track_caller]
fn ends_within(child: &mut Child, limit: Duration) -> Option<i32> {
    assert!(ctr::wait(child, limit), "still there after {limit:?}");
    child.wait().expect("the child can be waited for").code()
}

#[test]
fn a_guest_that_never_answers_fails_the_create_in_bounded_time() {
    let before = leftovers::found();
    let agent = installed();
    let log = logged();
    let settings = impatient();
    let silent = "the guest did not answer Create";
    let cut = "the connection to the guest broke during Create";
    let guests: Vec<_> = [
        ("silent", silent),
        ("endless-frame", cut),
        ("flood-answers", cut),
    ]
    .map(|(mode, error)| (error, hostile_with(&settings, &agent, mode).in_background()))
    .into();
    an_ordinary_task_runs();
    for shim in named("containerd-shim") {
        expect_small(shim);
    }
    let count = guests.len() as u64;
    for (expected, (task, mut child)) in guests {
        let status = ends_within(&mut child, CREATE_FAILS_MAX);
        let error = child.wait_with_output().expect("its output").stderr;
        let error = String::from_utf8_lossy(&error).into_owned();
        assert_ne!(status, Some(0), "{error}");
        assert!(error.contains(expected), "{error}");
        drop(task);
    }
    leftovers::expect_none_since(&before);
    let grown = logged() - log;
    assert!(grown <= count * LOG_BYTES_MAX, "{grown} bytes of log");
}

#[test]
fn a_guest_that_answers_nonsense_is_refused_in_few_printable_words() {
    let agent = installed();
    for mode in ["garbage", "oversized", "long-refusal"] {
        let before = leftovers::found();
        let outcome: Outcome = hostile(&agent, mode).to_end();
        assert_ne!(outcome.status, 0, "{mode}: {outcome}");
        let error = outcome.error();
        assert!(error.len() <= SENTENCE_BYTES_MAX, "{mode}: {outcome}");
        let printable = |c: char| c == '\n' || !c.is_control();
        assert!(error.chars().all(printable), "{mode}: {error:?}");
        leftovers::expect_none_since(&before);
    }
}

/// Runs a guest in this mode beside an ordinary task, then ends it by SIGKILL.
fn flooding_is_bounded(mode: &str) {
    let before = leftovers::found();
    let agent = installed();
    let log = logged();
    let (task, mut child): (Task, Child) = hostile(&agent, mode).in_background();
    let shim = parent_of(task.until("RUNNING"));
    an_ordinary_task_runs();
    expect_small(shim);
    task.kill("SIGKILL");
    drop(child.stdout.take());
    // 141: ctr itself, when the flood is its output and its reader is gone.
    let status = ends_within(&mut child, KILL_MAX);
    assert!(matches!(status, Some(137) | None), "{status:?}");
    drop(task);
    leftovers::expect_none_but_fifos_since(&before);
    let grown = logged() - log;
    assert!(grown <= LOG_BYTES_MAX, "{grown} bytes of log");
}

#[test]
fn a_flood_of_output_that_nobody_reads_is_bounded() {
    flooding_is_bounded("flood-stdout");
}

#[test]
fn a_flooded_console_is_bounded() {
    flooding_is_bounded("flood-console");
}

/// `/etc/wasmvm/config.toml` for the time of a test.
struct Configured {
    aside: Option<PathBuf>,
}

impl Configured {
    const PATH: &str = "/etc/wasmvm/config.toml";

    fn with(text: &str) -> Self {
        let path = Path::new(Self::PATH);
        let aside = path.with_extension("aside");
        let aside = fs::rename(path, &aside).is_ok().then_some(aside);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
        Self { aside }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        fs::remove_file(Self::PATH).expect("it is there");
        if let Some(aside) = &self.aside {
            fs::rename(aside, Self::PATH).expect("it comes back");
        }
    }
}

/// Waits until containerd's log has this in what was added after its first `from` bytes.
#[track_caller]
fn log_shows(text: &str, from: u64) {
    let start = Instant::now();
    let from = usize::try_from(from).expect("a short log");
    loop {
        let log = fs::read(log_path()).expect("containerd has a log");
        if String::from_utf8_lossy(log.get(from..).unwrap_or_default()).contains(text) {
            return;
        }
        assert!(start.elapsed() < SHOW_MAX, "the log has no {text:?}");
        std::thread::sleep(POLL);
    }
}

#[test]
fn a_flooded_console_that_the_operator_reads_is_logged_at_a_bounded_rate() {
    let agent = installed();
    let _config = Configured::with("console = true\n");
    let log = logged();
    let (task, mut child) = hostile(&agent, "flood-console").in_background();
    let shim = parent_of(task.until("RUNNING"));
    log_shows("hostile: the console is flooded", log);
    let (log, start) = (logged(), Instant::now());
    an_ordinary_task_runs();
    let (grown, seconds) = (logged() - log, start.elapsed().as_secs() + 2);
    println!("{grown} bytes of log in {seconds} s");
    assert!(
        grown <= seconds * FORWARDED_BYTES_PER_SECOND_MAX,
        "{grown} bytes of log in {seconds} s"
    );
    expect_small(shim);
    task.kill("SIGKILL");
    assert_eq!(ends_within(&mut child, KILL_MAX), Some(137));
}

#[test]
fn a_guest_that_dials_every_port_of_the_host_reaches_nothing() {
    flooding_is_bounded("dial");
}

#[test]
fn sigkill_ends_a_guest_that_does_not_obey() {
    let before = leftovers::found();
    let agent = installed();
    // One does not answer, one says yes, one that there is no such program, one everything that ttrpc has a
    // code for; all go on.
    for mode in ["deaf", "immortal", "kill-not-found", "every-code"] {
        let (task, mut child) = hostile(&agent, mode).in_background();
        task.until("RUNNING");
        task.kill("SIGKILL");
        assert_eq!(ends_within(&mut child, KILL_MAX), Some(137), "{mode}");
    }
    leftovers::expect_none_since(&before);
}

#[test]
fn an_exec_that_the_guest_does_not_answer_fails_in_bounded_time() {
    let before = leftovers::found();
    let agent = installed();
    let settings = impatient();
    let task = hostile_with(&settings, &agent, "deaf").detached();
    task.until("RUNNING");
    let outcome = Exec::of(&task, ["/tiny"]).to_end();
    assert_ne!(outcome.status, 0, "{outcome}");
    assert!(outcome.took < CREATE_FAILS_MAX, "{outcome}");
    drop(task);
    leftovers::expect_none_since(&before);
}

#[test]
fn sigterm_ends_a_guest_that_does_not_obey() {
    let agent = installed();
    for mode in ["deaf", "immortal", "kill-not-found"] {
        let (task, mut child) = hostile(&agent, mode).in_background();
        task.until("RUNNING");
        task.kill("SIGTERM");
        assert_eq!(ends_within(&mut child, KILL_MAX), Some(143), "{mode}");
    }
}

#[test]
fn an_answer_that_grows_when_it_is_decoded_ends_the_guest_and_not_the_shim() {
    let before = leftovers::found();
    let agent = installed();
    for mode in ["unknown-fields", "many-pids"] {
        let task = hostile(&agent, mode).flag("--null-io").detached();
        let shim = parent_of(task.until("RUNNING"));
        // The answer comes to Kill in one, to what an operator asks in the other.
        let status = if mode == "unknown-fields" {
            task.kill("SIGTERM");
            143
        } else {
            let pid = i32::try_from(shim)
                .ok()
                .and_then(Pid::from_raw)
                .expect("a pid");
            kill_process(pid, Signal::USR1).expect("the shim lives");
            137
        };
        let _ = task.until("STOPPED");
        expect_small(shim);
        assert_eq!(task.delete(), status, "{mode}");
        drop(task);
        leftovers::expect_none_since(&before);
    }
}

#[test]
fn limits_change_whatever_the_guest_answers() {
    let agent = installed();
    let task = hostile(&agent, "refuse-update")
        .option("--memory-limit", &(64 << 20).to_string())
        .flag("--null-io")
        .detached();
    let memory = Cgroup::of(task.until("RUNNING"), "memory");
    for bytes in [128_u64 << 20, 100 << 20] {
        update(task.id(), &json!({"memory": {"limit": bytes}})).expect("taken");
        assert_eq!(memory.memory_limit(), bytes.to_string());
    }
    let _ = task.until("RUNNING");
}

#[test]
fn a_guest_that_reports_its_end_and_runs_on_has_ended() {
    let before = leftovers::found();
    let agent = installed();
    let outcome = hostile(&agent, "early-wait").to_end();
    assert_eq!(outcome.status, 0, "{outcome}");
    leftovers::expect_none_since(&before);
}

#[test]
fn a_write_to_an_artifact_ends_the_guest_and_the_artifact_stays() {
    let agent = installed();
    let outcome = hostile(&agent, "slot-write").to_end();
    assert_eq!(outcome.status, 137, "{outcome}");
    // The same program, from the same pages.
    an_ordinary_task_runs();
}

#[test]
fn no_device_is_made_on_a_volume() {
    let agent = installed();
    // On a file system that would hold it.
    let volume = tempfile::tempdir_in("/run").expect("a folder");
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:rw",
        volume.path().display()
    );
    let outcome = hostile(&agent, "fuse-whiteout")
        .option("--mount", &mount)
        .to_end();
    assert_eq!(outcome.status, 0, "{outcome}");
    for entry in fs::read_dir(volume.path()).expect("the volume") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("its kind");
        assert!(kind.is_file(), "{} is {kind:?}", entry.path().display());
    }
}

#[test]
fn a_guest_whose_agent_is_of_no_use_any_more_has_ended() {
    let agent = installed();
    // One closes its connection, the other answers every open request with a stream of data.
    for mode in ["hang-up", "flood-data"] {
        let before = leftovers::found();
        let outcome = hostile(&agent, mode).to_end();
        assert_eq!(outcome.status, 137, "{mode}: {outcome}");
        leftovers::expect_none_since(&before);
    }
}

#[test]
fn a_status_beyond_a_byte_is_255() {
    let agent = installed();
    let outcome = hostile(&agent, "impossible-status").to_end();
    assert_eq!(outcome.status, 255, "{outcome}");
}

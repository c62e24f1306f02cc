//! A pod's sandbox and its containers, as containerd's CRI plugin has them made: by annotations.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasmvm_tests::cgroup::Cgroup;
use wasmvm_tests::ctr::ctr;
use wasmvm_tests::leftovers;
use wasmvm_tests::process;
use wasmvm_tests::shim::Joined;
use wasmvm_tests::task::{Run, Task, fresh_id};

const KIND: &str = "io.kubernetes.cri.container-type";
const POD: &str = "io.kubernetes.cri.sandbox-id";
/// How long containerd may take to see an end.
const SEEN_MAX: Duration = Duration::from_secs(60);

fn in_pod(run: Run, kind: &str, pod: &str) -> Run {
    run.option("--annotation", &format!("{KIND}={kind}"))
        .option("--annotation", &format!("{POD}={pod}"))
}

/// The sandbox of a pod, in a network namespace of its own. Its image is never looked at.
fn sandbox() -> Task {
    let id = fresh_id();
    in_pod(Run::image("probe").id(&id), "sandbox", &id).detached()
}

/// A container of a pod, in the network namespace of the sandbox.
fn container(sandbox: &Task, image: &str) -> Run {
    let network = format!("network:/proc/{}/ns/net", pid(sandbox));
    in_pod(Run::image(image), "container", sandbox.id()).option("--with-ns", &network)
}

/// The pid of a task that runs.
fn pid(task: &Task) -> u32 {
    task.state().expect("the task is there").0
}

fn kill_9(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("the process is there");
}

fn of_process(pid: u32, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(of_process(pid, "status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.expect(field).trim_start_matches(':').trim().to_owned()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(of_process(pid, &format!("ns/{kind}"))).expect("a namespace")
}

#[test]
fn a_sandbox_is_a_small_process_that_can_do_nothing() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let holder = pid(&sandbox);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(holder, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(holder, "NoNewPrivs"), "1");
    assert_eq!(status(holder, "Seccomp"), "2");
    assert_eq!(status(holder, "Uid"), ["2002875246"; 4].join("\t"));
    assert_eq!(status(holder, "Groups"), "");
    let root = fs::read_dir(of_process(holder, "root")).expect("a root");
    assert_eq!(root.count(), 0, "its root is empty");
    let host = std::process::id();
    for kind in ["pid", "ipc", "uts", "mnt", "net"] {
        assert_ne!(namespace(holder, kind), namespace(host, kind), "{kind}");
    }
    let used = Cgroup::of(holder, "memory").read("memory.current", "memory.usage_in_bytes");
    let used: u64 = used.trim().parse().expect("a number");
    assert!(used <= 512 << 10, "{used} bytes");
    let metrics = ctr(["task", "metrics", sandbox.id()]).expect_status(0);
    assert!(metrics.text().contains("memory"), "{metrics}");
    assert_eq!(sandbox.pids(), [holder]);
    drop(sandbox);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_sandbox_ends_as_a_pause_program_does() {
    let sandbox_that_gets = |signals: &[&str]| {
        let sandbox = sandbox();
        signals.iter().for_each(|signal| sandbox.kill(signal));
        sandbox.until("STOPPED");
        sandbox.delete()
    };
    assert_eq!(sandbox_that_gets(&["SIGTERM"]), 0);
    assert_eq!(sandbox_that_gets(&["SIGHUP", "SIGUSR1", "SIGINT"]), 0);
    assert_eq!(sandbox_that_gets(&["SIGKILL"]), 137);
}

#[test]
fn a_sandbox_takes_neither_exec_nor_pause() {
    let sandbox = sandbox();
    let exec = ["task", "exec", "--exec-id", "e", sandbox.id(), "/probe"];
    ctr(exec).expect_refusal(&["runs no program", "pod's containers"]);
    ctr(["task", "pause", sandbox.id()]).expect_refusal(&["has no VM", "pod's containers"]);
    sandbox.until("RUNNING");
}

#[test]
fn the_containers_of_a_pod_have_one_shim_and_a_vm_each() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let ended = container(&sandbox, "probe")
        .args(["/probe", "args", "one"])
        .to_end();
    assert!(ended.expect_status(0).text().contains("one"));
    let [one, two] = ["loop", "loop"].map(|mode| {
        let container = container(&sandbox, "probe").args(["/probe", mode]);
        container.detached()
    });
    let shim = process::parent_of(pid(&sandbox));
    for container in [&one, &two] {
        assert_eq!(process::parent_of(pid(container)), shim);
        assert_eq!(
            namespace(pid(container), "net"),
            namespace(pid(&sandbox), "net")
        );
    }
    assert_ne!(pid(&one), pid(&two));
    drop(one);
    two.until("RUNNING");
    sandbox.until("RUNNING");
    drop((two, sandbox));
    leftovers::expect_none_since(&before);
}

#[test]
fn a_container_whose_pod_is_not_there_is_refused_and_leaves_nothing() {
    let before = leftovers::found();
    let create = |pod: &str| in_pod(Run::image("probe"), "container", pod).to_end();
    create("no-such-pod").expect_refusal(&["no-such-pod", "has no shim"]);
    create("../pod").expect_refusal(&[POD, "\"../pod\""]);
    let alone = Run::image("probe").args(["/probe", "loop"]).detached();
    create(alone.id()).expect_refusal(&[alone.id(), "has no shim"]);
    drop(alone);
    let kind = in_pod(Run::image("probe"), "pause", "p").to_end();
    kind.expect_refusal(&[KIND, "\"pause\""]);
    let sandbox = sandbox();
    sandbox.kill("SIGKILL");
    sandbox.until("STOPPED");
    create(sandbox.id()).expect_refusal(&["does not run"]);
    drop(sandbox);
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_a_vm_touches_no_other_container_of_the_pod() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let container = || {
        container(&sandbox, "probe")
            .args(["/probe", "loop"])
            .detached()
    };
    let [one, two] = [container(), container()];
    kill_9(pid(&one));
    one.until("STOPPED");
    assert_eq!(one.delete(), 137);
    two.until("RUNNING");
    sandbox.until("RUNNING");
    drop((one, two, sandbox));
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_the_holder_ends_the_sandbox_and_no_container() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let container = container(&sandbox, "probe")
        .args(["/probe", "loop"])
        .detached();
    kill_9(pid(&sandbox));
    sandbox.until("STOPPED");
    container.until("RUNNING");
    container.kill("SIGTERM");
    container.until("STOPPED");
    assert_eq!(container.delete(), 143);
    assert_eq!(sandbox.delete(), 137);
    drop((container, sandbox));
    leftovers::expect_none_since(&before);
}

#[test]
fn kill_9_of_a_pods_shim_leaves_nothing_of_the_pod() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let container = || {
        container(&sandbox, "probe")
            .args(["/probe", "loop"])
            .detached()
    };
    let tasks = [container(), container()];
    let pids: Vec<_> = tasks.iter().chain([&sandbox]).map(pid).collect();
    kill_9(process::parent_of(pids[0]));
    let start = Instant::now();
    for task in tasks.iter().chain([&sandbox]) {
        while task.state().is_some_and(|(_, state)| state == "RUNNING") {
            assert!(
                start.elapsed() < SEEN_MAX,
                "containerd has not seen the end of {}",
                task.id()
            );
        }
    }
    for pid in pids {
        assert!(!of_process(pid, "").exists(), "{pid} outlives its shim");
    }
    drop((tasks, sandbox));
    leftovers::expect_none_but_fifos_since(&before);
}

/// A pod whose programs are compiled for it alone, and so in any case: it is a tenant of its own, and its artifacts are
/// kept nowhere else.
struct Tenant {
    sandbox: Task,
    options: PathBuf,
    _folder: tempfile::TempDir,
}

impl Tenant {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = folder.path().join("wasmvm.toml");
        let artifacts = folder.path().join("artifacts");
        let settings = format!("sharing = \"tenant\"\nartifact_dir = {artifacts:?}\n");
        fs::write(&options, settings).expect("written");
        Self {
            sandbox: sandbox(),
            options,
            _folder: folder,
        }
    }

    fn container(&self) -> Run {
        let tenant = format!("io.kubernetes.cri.sandbox-namespace={}", self.sandbox.id());
        let options = self.options.to_str().expect("a path of ours is text");
        container(&self.sandbox, "busybox")
            .option("--annotation", &tenant)
            .option("--runtime-config-path", options)
            .args(["echo", "compiled"])
    }

    /// Starts a container, and gives the start up while its program is compiled, as kubelet does after two minutes.
    fn give_up_a_start(&self) {
        let (container, mut client) = self.container().in_background();
        let journal = Path::new("/run/wasmvm/tasks/default").join(container.id());
        wait("the compiler VM runs", || !self.compilers().is_empty());
        client.kill().expect("ctr runs");
        client.wait().expect("ctr ends");
        container.remove();
        wait("the container is gone", || !journal.exists());
    }

    /// The compiler VMs of the pod.
    fn compilers(&self) -> Vec<u32> {
        let pod = Path::new("wasmvm-compile/default").join(self.sandbox.id());
        let of_pod = |pid: &u32| {
            let cgroup = fs::read_to_string(of_process(*pid, "cgroup")).unwrap_or_default();
            cgroup.contains(pod.to_str().expect("text"))
        };
        let vmms = process::named("wasmvm-vmm");
        vmms.into_iter().filter(of_pod).collect()
    }
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SEEN_MAX, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_compile_goes_on_in_its_pod_when_the_start_is_given_up() {
    let before = leftovers::found();
    let pod = Tenant::new();
    pod.give_up_a_start();
    let compilers = pod.compilers();
    assert_eq!(compilers.len(), 1, "the compile goes on");
    let (later, mut client) = pod.container().in_background();
    // A start that had to compile the program itself would do it in another VM.
    while client.try_wait().expect("ctr runs").is_none() {
        assert!(pod.compilers().iter().all(|pid| compilers.contains(pid)));
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = client.wait_with_output().expect("ctr has ended");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "compiled\n");
    drop((later, pod));
    leftovers::expect_none_but_fifos_since(&before);
}

#[test]
fn a_compile_ends_with_its_pod() {
    let before = leftovers::found();
    let pod = Tenant::new();
    pod.give_up_a_start();
    assert_eq!(pod.compilers().len(), 1, "the compile goes on");
    drop(pod);
    leftovers::expect_none_but_fifos_since(&before);
}

/// containerd 2.3 and later send a pod's containers to the pod's shim without executing `start`, or `delete`.
#[test]
fn a_container_that_comes_without_start_is_one_of_the_pods() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let run = container(&sandbox, "probe").args(["/probe", "loop"]);
    let joined = Joined::start(&run, &sandbox);
    assert_eq!(
        process::parent_of(joined.pid()),
        process::parent_of(pid(&sandbox))
    );
    assert_eq!(joined.asked_again(), (joined.pid(), vec![joined.pid()]));
    assert_eq!(joined.end(), 137);
    sandbox.until("RUNNING");
    drop(sandbox);
    leftovers::expect_none_since(&before);
}

#[test]
fn the_delete_of_a_sandbox_leaves_nothing_of_containers_that_came_without_start() {
    let before = leftovers::found();
    let sandbox = sandbox();
    let run = || container(&sandbox, "probe").args(["/probe", "loop"]);
    let joined = [
        Joined::start(&run(), &sandbox),
        Joined::start(&run(), &sandbox),
    ];
    kill_9(process::parent_of(pid(&sandbox)));
    wait("containerd has deleted the sandbox", || {
        sandbox.state().is_none_or(|(_, state)| state != "RUNNING")
    });
    for joined in &joined {
        assert!(
            !of_process(joined.pid(), "").exists(),
            "a VMM outlives its shim"
        );
    }
    drop((joined, sandbox));
    leftovers::expect_none_but_fifos_since(&before);
}

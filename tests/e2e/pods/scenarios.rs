//! Of pods, what is not walked in every run.

use std::fs;

use wasmvm_tests::cgroup::Cgroup;
use wasmvm_tests::containerd::Version;
use wasmvm_tests::cri::log;
use wasmvm_tests::cri::messages::LinuxContainerResources;
use wasmvm_tests::cri::node::Node;

use super::Kind;
use super::walk::{STAY, kill_9, until, until_there};

const MIB: i64 = 1 << 20;

/// Each has its own address and host name, and the end of one is not the other's.
pub(super) fn two_pods(kind: Kind, node: &mut Node) {
    let pods = ["one", "two"].map(|name| kind.pod().hostname(name).run());
    let script = "hostname; exec sleep 4321";
    let containers = pods
        .each_ref()
        .map(|pod| kind.shell(pod, "same", script).start());
    for (container, name) in containers.iter().zip(["one", "two"]) {
        container.until_logged(name);
    }
    assert_ne!(pods[0].ip(), pods[1].ip());
    let [one, two] = pods;
    one.remove();
    assert!(two.is_ready());
    assert!(containers[1].is_running());
    assert_eq!(node.pods().len(), 1);
    two.remove();
}

/// The host's network namespace is that of the pod's processes, and there is no address.
pub(super) fn host_network(kind: Kind, _: &mut Node) {
    let pod = kind.pod().host_network().run();
    assert_eq!(pod.ip(), None);
    assert_eq!(network_of(pod.pid()), network_of(std::process::id()));
    let container = kind.shell(&pod, "shell", "exit 3").start();
    assert_eq!(container.until_exited().exit_code, 3);
    pod.remove();
}

/// A network namespace of the pod's, in which its kernel parameters are set.
pub(super) fn own_network(kind: Kind, _: &mut Node) {
    let parameter = "net.ipv4.ip_unprivileged_port_start";
    let pod = kind.pod().sysctl(parameter, "77").run();
    assert_ne!(network_of(pod.pid()), network_of(std::process::id()));
    let inside = std::process::Command::new("nsenter")
        .args(["--net", "--target", &pod.pid().to_string()])
        .args(["cat", &format!("/proc/sys/{}", parameter.replace('.', "/"))])
        .output()
        .expect("nsenter can be started");
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "77\n");
    let container = kind.shell(&pod, "shell", STAY).start();
    container.until_logged("up");
    assert_eq!(network_of(container.pid()), network_of(pod.pid()));
    pod.remove();
}

fn network_of(pid: u32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).expect("a process");
    link.display().to_string()
}

/// As a kubelet rotates logs.
pub(super) fn log_rotation(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!("echo before; {}; echo after", until_there("/shared/go"));
    let container = kind.shell(&pod, "rotated", &script);
    let container = container.mount(folder.path(), "/shared", false).start();
    container.until_logged("before");
    let old = container.log_path().with_extension("old");
    fs::rename(container.log_path(), &old).expect("renamed");
    container.reopen_log().expect("it is opened");
    fs::write(folder.path().join("go"), "").expect("written");
    assert_eq!(container.until_exited().exit_code, 0);
    assert_eq!(log::text_of(&container.log(), "stdout"), "after\n");
    assert_eq!(log::text_of(&log::read(&old), "stdout"), "before\n");
    pod.remove();
}

/// A memory limit is the cgroup's, below the pod's, and may be changed.
pub(super) fn live_limits(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let container = kind.shell(&pod, "limited", STAY).memory_limit(128 * MIB);
    let container = container.start();
    container.until_logged("up");
    let pid = container.pid();
    let of = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    assert!(of.contains("/kubepods/pod"), "{of}");
    let cgroup = Cgroup::of(pid, "memory");
    assert_eq!(cgroup.memory_limit(), (128 * MIB).to_string());
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 160 * MIB,
        ..Default::default()
    };
    container.update(resources).expect("the limit changes");
    assert_eq!(cgroup.memory_limit(), (160 * MIB).to_string());
    pod.remove();
}

/// Volumes: files of the host, live, and read-only where that was asked for.
pub(super) fn volumes(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "of the host\n").expect("written");
    let script =
        "cat /file; echo new >/written/new; echo no >/read/no || echo refused; exec sleep 4321";
    let container = kind
        .shell(&pod, "mounted", script)
        .mount(&file, "/file", true)
        .mount(folder.path(), "/written", false)
        .mount(folder.path(), "/read", true)
        .start();
    container.until_logged("refused");
    assert_eq!(
        log::text_of(&container.log(), "stdout"),
        "of the host\nrefused\n"
    );
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
    assert_eq!(text("new").as_deref(), Some("new\n"));
    assert_eq!(text("no"), None);
    fs::write(folder.path().join("later"), "later\n").expect("written");
    let read = container.exec_sync(["/bin/sh", "-c", "cat /read/later"]);
    assert_eq!(read.expect("it runs").stdout, b"later\n");
    pod.remove();
}

/// Up to the newest, as a node is upgraded.
pub(super) fn upgrades(kind: Kind, node: &mut Node) {
    let pod = kind.pod().run();
    let container = kind.shell(&pod, "stays", STAY).start();
    container.until_logged("up");
    let pid = container.pid();
    for version in [Version::V1_7, Version::V2] {
        node.stop();
        node.start_as(version);
        assert!(pod.is_ready());
        assert!(container.is_running());
        assert_eq!(container.pid(), pid);
        let probed = container.exec_sync(["/bin/sh", "-c", "exit 4"]);
        assert_eq!(probed.expect("it runs").exit_code, 4);
        let other = kind.shell(&pod, "other", "exit 5").start();
        assert_eq!(other.until_exited().exit_code, 5);
        other.remove().expect("it is removed");
    }
    pod.remove();
}

/// A container that dies is no matter of its siblings.
pub(super) fn container_killed(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let [dies, lives] = ["dies", "lives"].map(|name| kind.shell(&pod, name, STAY).start());
    for container in [&dies, &lives] {
        container.until_logged("up");
    }
    kill_9(dies.pid());
    assert_eq!(dies.until_exited().exit_code, 137);
    assert!(pod.is_ready());
    assert!(lives.is_running());
    let probed = lives.exec_sync(["/bin/sh", "-c", "exit 4"]);
    assert_eq!(probed.expect("it runs").exit_code, 4);
    pod.remove();
}

/// As `kill -9` of a pause process does: the pod is not ready any more, and is removed as ever.
pub(super) fn sandbox_killed(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let container = kind.shell(&pod, "stays", STAY).start();
    container.until_logged("up");
    kill_9(pod.pid());
    until("the pod is not ready", || !pod.is_ready());
    pod.remove();
}

/// The end for want of memory is told as such.
pub(super) fn out_of_memory(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let container = kind.shell(&pod, "starved", STAY).start();
    container.until_logged("up");
    // The host takes what the container has away.
    let memory = Cgroup::of(container.pid(), "memory");
    memory.write("memory.max", "memory.limit_in_bytes", "0");
    let status = container.until_exited();
    assert_eq!(status.exit_code, 137, "{status}");
    until("the reason is told", || {
        container.status().reason == "OOMKilled"
    });
    pod.remove();
}

/// A container that cannot start leaves a pod in which another one can.
pub(super) fn failed_start(kind: Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let spec = kind.shell(&pod, "fails", "exit 0").args(["/absent"]);
    let fails = spec.create().expect("it is created");
    let refused = fails.start();
    refused
        .expect_err("it is not there")
        .expect_refusal(&["/absent"]);
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing");
    let spec = kind
        .shell(&pod, "unmounted", "exit 0")
        .mount(&missing, "/there", true);
    // CRI makes the folder that is missing, as Docker did.
    let mounted = spec.create().expect("it is created");
    mounted.start().expect("it starts");
    assert_eq!(mounted.until_exited().exit_code, 0);
    let works = kind.shell(&pod, "works", "exit 6").start();
    assert_eq!(works.until_exited().exit_code, 6);
    pod.remove();
}

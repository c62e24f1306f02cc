//! Pods of VMs: what runc's are tested for, and what is ours alone.

use std::fs;
use std::thread;
use std::time::Duration;

use wasmvm_tests::containerd::Version;
use wasmvm_tests::cri::container::ContainerSpec;
use wasmvm_tests::cri::log;
use wasmvm_tests::cri::messages::MountPropagation;
use wasmvm_tests::cri::node::Node;
use wasmvm_tests::process;

use super::scenarios;
use super::walk::{LOST, STAY, kill_9, main_things, until, until_there};
use super::{WASMVM, on};

/// How long a program may take to end after its last write.
const END_MAX: Duration = Duration::from_secs(2);

#[test]
fn the_main_things_of_a_pod_on_1_6() {
    on(Version::Installed, WASMVM, main_things);
}

#[test]
fn the_main_things_of_a_pod_on_1_7() {
    on(Version::V1_7, WASMVM, main_things);
}

#[test]
fn the_main_things_of_a_pod_on_2() {
    on(Version::V2, WASMVM, main_things);
}

#[test]
fn a_pod_whose_shim_was_killed_is_removed_on_1_6() {
    on(Version::Installed, WASMVM, shim_killed);
}

#[test]
fn a_pod_whose_shim_was_killed_is_removed_on_2() {
    on(Version::V2, WASMVM, shim_killed);
}

/// As an operator's `kill -9`, or the host's want of memory, does: with two containers, one of which has ended.
fn shim_killed(kind: super::Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let ended = kind.shell(&pod, "ended", "exit 3").start();
    assert_eq!(ended.until_exited().exit_code, 3);
    let container = kind.shell(&pod, "lost", STAY).start();
    container.until_logged("up");
    let (vmm, holder) = (container.pid(), pod.pid());
    let shim = process::parent_of(vmm);
    assert_eq!(process::parent_of(holder), shim);
    kill_9(shim);
    let status = container.until_exited();
    assert!(LOST.contains(&status.exit_code), "{status}");
    until("the pod is not ready", || !pod.is_ready());
    pod.remove();
    for pid in [vmm, holder] {
        assert!(!fs::exists(format!("/proc/{pid}")).expect("Linux"));
    }
}

/// The shim has the exit code until containerd is back: runc's is lost from 1.7 on.
fn ended_meanwhile(kind: super::Kind, node: &mut Node) {
    let pod = kind.pod().run();
    let folder = tempfile::tempdir().expect("a folder");
    let wait = until_there("/shared/go");
    let script = format!("echo first; {wait}; echo >/shared/done; exit 9");
    let container = kind.shell(&pod, "ends", &script);
    let container = container.mount(folder.path(), "/shared", false).start();
    container.until_logged("first");
    node.kill();
    fs::write(folder.path().join("go"), "").expect("written");
    until("it is done", || folder.path().join("done").exists());
    // Nothing but time tells that the program has ended too.
    thread::sleep(END_MAX);
    node.start_again();
    assert!(pod.is_ready());
    assert_eq!(container.until_exited().exit_code, 9);
    pod.remove();
}

fn one_shim(kind: super::Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let containers = ["one", "two"].map(|name| kind.shell(&pod, name, STAY).start());
    for container in &containers {
        container.until_logged("up");
    }
    let [one, two] = containers.each_ref().map(|container| container.pid());
    assert_ne!(one, two);
    let shims = [one, two, pod.pid()].map(process::parent_of);
    assert_eq!(shims, [shims[0]; 3]);
    assert_eq!(process::named("wasmvm-vmm").len(), 2);
    pod.remove();
}

fn elf(kind: super::Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let container = ContainerSpec::of(&pod, "elf", wasmvm_tests::cri::image::NATIVE);
    let container = container.create().expect("it is created");
    let refused = container.start();
    refused
        .expect_err("it is an ELF program")
        .expect_refusal(&["/bin/hello", "WebAssembly"]);
    let other = kind.shell(&pod, "other", "echo fine").start();
    assert_eq!(other.until_exited().exit_code, 0);
    assert_eq!(log::text_of(&other.log(), "stdout"), "fine\n");
    pod.remove();
}

/// VMs do not see each other's processes; it is said at the container, where a kubelet shows it.
fn shared_processes(kind: super::Kind, _: &mut Node) {
    let pod = kind.pod().shared_processes().run();
    let container = kind.shell(&pod, "shell", "exit 0").create();
    let refused = container.expect("it is created").start();
    refused.expect_err("it is refused").expect_refusal(&["pid"]);
    pod.remove();
}

fn propagation(kind: super::Kind, _: &mut Node) {
    let pod = kind.pod().run();
    let folder = tempfile::tempdir().expect("a folder");
    let spec = kind.shell(&pod, "shell", "exit 0");
    let spec = spec.mount(folder.path(), "/there", false);
    let spec = spec.propagated(MountPropagation::PROPAGATION_HOST_TO_CONTAINER);
    let refused = spec.create().expect("it is created").start();
    refused
        .expect_err("it is refused")
        .expect_refusal(&["mountPropagation"]);
    pod.remove();
}

/// The tests that `make pods` runs and `make test` does not.
mod more {
    use super::*;

    #[test]
    fn a_pod_whose_shim_was_killed_is_removed_on_1_7() {
        on(Version::V1_7, WASMVM, shim_killed);
    }

    #[test]
    fn what_ends_without_containerd_keeps_its_exit_code_on_1_6() {
        on(Version::Installed, WASMVM, ended_meanwhile);
    }

    #[test]
    fn what_ends_without_containerd_keeps_its_exit_code_on_1_7() {
        on(Version::V1_7, WASMVM, ended_meanwhile);
    }

    #[test]
    fn what_ends_without_containerd_keeps_its_exit_code_on_2() {
        on(Version::V2, WASMVM, ended_meanwhile);
    }

    #[test]
    fn a_pods_containers_have_one_shim_and_a_vm_each() {
        on(Version::V2, WASMVM, one_shim);
    }

    #[test]
    fn an_elf_program_is_refused_in_a_pod() {
        on(Version::V2, WASMVM, elf);
    }

    #[test]
    fn a_shared_process_namespace_is_refused() {
        on(Version::V2, WASMVM, shared_processes);
    }

    #[test]
    fn mounts_that_propagate_are_refused() {
        on(Version::V2, WASMVM, propagation);
    }

    #[test]
    fn two_pods_are_apart() {
        on(Version::Installed, WASMVM, scenarios::two_pods);
    }

    #[test]
    fn a_pod_may_be_in_the_hosts_network() {
        on(Version::V2, WASMVM, scenarios::host_network);
    }

    #[test]
    fn a_pod_has_a_network_with_its_parameters() {
        on(Version::V2, WASMVM, scenarios::own_network);
    }

    #[test]
    fn a_log_is_rotated() {
        on(Version::Installed, WASMVM, scenarios::log_rotation);
    }

    #[test]
    fn limits_change_while_a_container_runs() {
        on(Version::V2, WASMVM, scenarios::live_limits);
    }

    #[test]
    fn volumes_are_live() {
        on(Version::Installed, WASMVM, scenarios::volumes);
    }

    #[test]
    fn a_pod_lives_through_upgrades_of_containerd() {
        on(Version::Installed, WASMVM, scenarios::upgrades);
    }

    #[test]
    fn a_killed_container_leaves_its_siblings_alone() {
        on(Version::Installed, WASMVM, scenarios::container_killed);
    }

    #[test]
    fn a_pod_whose_own_process_was_killed_is_removed() {
        on(Version::Installed, WASMVM, scenarios::sandbox_killed);
    }

    #[test]
    fn a_container_without_memory_is_oom_killed() {
        on(Version::V2, WASMVM, scenarios::out_of_memory);
    }

    #[test]
    fn a_container_that_cannot_start_leaves_its_pod_ready() {
        on(Version::Installed, WASMVM, scenarios::failed_start);
    }
}

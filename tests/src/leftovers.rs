//! What a task or a pod must not leave behind: processes, mounts, cgroups, sockets, FIFOs, directories, and of a pod
//! its network: namespace, interface, address.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::{containerd, process};

/// containerd sends the last requests after `ctr` has returned; the shim ends a moment later.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// Between two looks: the processor is for what is waited for.
const POLL: Duration = Duration::from_millis(50);

/// Programs of ours, as `/proc/PID/comm` shows them (15 bytes).
const PROGRAMS: [&str; 4] = [
    "wasmvm-vmm",
    process::FILE_SERVER,
    "wasmvm-holder",
    "containerd-shim",
];
/// Where directories, sockets and FIFOs of tasks live.
const FOLDERS: [&str; 4] = ["/run/wasmvm", TASKS, "/run/containerd/s", FIFOS];
/// Folders of containerd's for pods and containers, below its state and its root.
const OF_CRI: [&str; 2] = [
    "io.containerd.grpc.v1.cri/sandboxes",
    "io.containerd.grpc.v1.cri/containers",
];
/// containerd's bundles of CRI's namespace, below its state.
const BUNDLES: &str = "io.containerd.runtime.v2.task/k8s.io";
/// The host's side of a pod's network.
const INTERFACES: &str = "/sys/class/net";
/// A folder for each of containerd's namespaces that has tasks.
const TASKS: &str = "/run/wasmvm/tasks";
/// Made and removed by the client, `ctr`.
const FIFOS: &str = "/run/containerd/fifo";
/// The host's, not a task's: the folder of tasks itself, the memory of compiled programs, and the queue of those
/// who compile.
const OF_THE_HOST: [&str; 3] = [TASKS, "/run/wasmvm/artifacts", "/run/wasmvm/compile"];
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is on the host now that a task or a pod of ours could have put there.
#[must_use]
pub fn found() -> Vec<String> {
    let mut found = Vec::new();
    found.extend(processes());
    found.extend(mounts());
    found.extend(interfaces());
    found.extend(leases());
    found.extend(of_pods());
    found.extend(cgroups(Path::new(CGROUPS), 0));
    for folder in FOLDERS {
        found.extend(
            entries(Path::new(folder))
                .filter(|path| OF_THE_HOST.iter().all(|stays| path != Path::new(stays)))
                .map(|path| path.display().to_string()),
        );
    }
    found.sort();
    found
}

/// Fails the test unless everything beyond `before` goes away by itself.
///
/// # Panics
/// With the list of what stayed.
#[track_caller]
pub fn expect_none_since(before: &[String]) {
    expect_none_within(SETTLE_MAX, before);
}

#[track_caller]
fn expect_none_within(limit: Duration, before: &[String]) {
    let start = Instant::now();
    loop {
        let new = |thing: &String| !before.contains(thing);
        let left: Vec<_> = found().into_iter().filter(new).collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < limit, "left behind: {left:#?}");
        thread::sleep(POLL);
    }
}

/// As [`expect_none_since`], but for the FIFOs: a `ctr run` whose shim was killed under it ends without
/// removing its own, with any runtime.
///
/// # Panics
/// With the list of what stayed.
#[track_caller]
pub fn expect_none_but_fifos_since(before: &[String]) {
    expect_none_but_fifos_within(SETTLE_MAX, before);
}

/// The same, for what takes longer than usual.
///
/// # Panics
/// With the list of what stayed.
#[track_caller]
pub fn expect_none_but_fifos_within(limit: Duration, before: &[String]) {
    let fifos = found().into_iter().filter(|thing| thing.starts_with(FIFOS));
    let before: Vec<_> = before.iter().cloned().chain(fifos).collect();
    expect_none_within(limit, &before);
}

fn processes() -> impl Iterator<Item = String> {
    entries(Path::new("/proc")).filter_map(|path| {
        let comm = fs::read_to_string(path.join("comm")).ok()?;
        let ours = PROGRAMS.iter().any(|program| comm.trim_end() == *program);
        ours.then(|| format!("process {} {}", path.display(), comm.trim_end()))
    })
}

/// Names of pods' ends of a bridge on the host.
fn interfaces() -> impl Iterator<Item = String> {
    let names = entries(Path::new(INTERFACES)).filter_map(|path| {
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with("veth").then_some(name)
    });
    names.map(|name| format!("interface {name}"))
}

/// Addresses that pods have.
fn leases() -> impl Iterator<Item = String> {
    let files = entries(&containerd::leases()).flat_map(|network| entries(&network));
    files.filter_map(|path| {
        let address: IpAddr = path.file_name()?.to_str()?.parse().ok()?;
        Some(format!("address {address}"))
    })
}

/// What containerd keeps for pods and their containers.
fn of_pods() -> impl Iterator<Item = String> {
    let state = containerd::state();
    let root = state.with_file_name("root");
    let folders = [&state, &root].map(|folder| OF_CRI.map(|name| folder.join(name)));
    let folders = folders.into_iter().flatten().chain([state.join(BUNDLES)]);
    let paths: Vec<_> = folders.flat_map(|folder| entries(&folder)).collect();
    paths.into_iter().map(|path| path.display().to_string())
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| {
            let of_the_host = OF_THE_HOST.contains(point);
            (point.starts_with("/run/wasmvm") && !of_the_host)
                || point.contains("/io.containerd.runtime.v2.task/")
                || point.contains("/io.containerd.grpc.v1.cri/")
                || point.contains("/netns/cni-")
        })
        .map(|point| format!("mount {point}"))
        .collect()
}

/// All cgroups; the depth is bounded by what tasks make, below one of version 1's hierarchies.
fn cgroups(folder: &Path, depth: u32) -> Vec<String> {
    if depth > 5 {
        return Vec::new();
    }
    entries(folder)
        .filter(|path| path.is_dir())
        .flat_map(|path| {
            let mut below = cgroups(&path, depth + 1);
            below.push(format!("cgroup {}", path.display()));
            below
        })
        .collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

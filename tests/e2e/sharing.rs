//! What tasks share: the store of compiled programs, and memory pages, as far as the operator wants it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use wasmvm_tests::leftovers;
use wasmvm_tests::task::{Run, Task};

const ARTIFACTS: &str = "/run/wasmvm/artifacts";
/// What precedes an artifact's content.
const HEADER_BYTES: usize = 4096;

/// The artifact that was used last.
fn last_used() -> PathBuf {
    let entries = fs::read_dir(ARTIFACTS)
        .expect("the store is there")
        .flatten();
    let by_use = |entry: &fs::DirEntry| {
        let used = entry.metadata().and_then(|metadata| metadata.modified());
        used.expect("it can be looked at")
    };
    entries.max_by_key(by_use).expect("an artifact").path()
}

#[test]
fn artifacts_lie_in_one_small_file_system_and_one_that_does_not_fit_is_compiled_again() {
    let before = leftovers::found();
    Run::image("tiny").to_end().expect_status(0);
    let mounts = fs::read_to_string("/proc/1/mountinfo").expect("the mounts of the host");
    let ours: Vec<_> = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(ARTIFACTS))
        .collect();
    assert_eq!(ours.len(), 1, "{mounts}");
    assert!(ours[0].contains(" - tmpfs wasmvm-artifacts "), "{ours:?}");
    let path = last_used();
    let mut artifact = fs::read(&path).expect("it can be read");
    artifact[HEADER_BYTES..].fill(0x5a);
    // As every writer does: who maps the old one keeps it.
    let aside = path.with_file_name(format!(
        ".{}.0.{}",
        path.file_name()
            .and_then(|name| name.to_str())
            .expect("a key"),
        std::process::id()
    ));
    fs::write(&aside, &artifact).expect("it can be written");
    fs::rename(&aside, &path).expect("it can be replaced");
    let outcome = Run::image("tiny").to_end().expect_status(0);
    assert_eq!(outcome.text(), "tiny\n");
    assert_ne!(fs::read(&path).expect("a new one"), artifact);
    leftovers::expect_none_since(&before);
}

/// The files that a VMM has mapped but for its own program: device and inode.
fn mapped(pid: u32) -> BTreeSet<(String, String)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the VMM runs");
    let file = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let (device, inode) = (fields.next()?, fields.next()?);
        let path = fields.next().unwrap_or_default();
        let is_file = inode != "0" && !path.ends_with("wasmvm-vmm") && !path.contains("kvm");
        is_file.then(|| (device.to_owned(), inode.to_owned()))
    };
    maps.lines().filter_map(file).collect()
}

#[test]
fn vms_share_the_pages_that_the_operator_wants_them_to_share() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let start = |sharing: &str| -> (Task, BTreeSet<(String, String)>) {
        let path = folder.path().join("wasmvm.toml");
        fs::write(&path, format!("sharing = {sharing:?}\n")).expect("written");
        let task = Run::image("probe")
            .option("--runtime-config-path", path.to_str().expect("text"))
            .flag("--null-io")
            .args(["/probe", "loop"])
            .detached();
        let pid = task.until("RUNNING");
        (task, mapped(pid))
    };
    let tasks = ["host", "host", "tenant", "tenant", "none", "none"].map(start);
    let common = |a: usize, b: usize| tasks[a].1.intersection(&tasks[b].1).count();
    // The artifact and the initramfs at least, the same number with each other as with oneself.
    assert!(common(0, 1) >= 2, "{tasks:?}");
    assert_eq!(common(0, 1), common(0, 0));
    assert_eq!(common(2, 3), common(2, 2));
    for (a, b) in [(0, 2), (0, 4), (2, 4), (4, 5)] {
        assert_eq!(common(a, b), 0, "tasks {a} and {b}: {tasks:?}");
    }
    for (task, _) in tasks {
        task.remove();
    }
    leftovers::expect_none_since(&before);
}

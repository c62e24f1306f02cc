//! The tmpfs as the host sees it.

use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};
use tempfile::{TempDir, tempdir};

use super::*;
use crate::sys::spawn::leave_host_mounts;

const BYTES: u64 = 1 << 20;

struct Host {
    _root: TempDir,
    memory: Memory,
}

impl Host {
    fn new() -> Self {
        let root = tempdir().unwrap();
        let path = root.path().join("artifacts");
        let memory = Memory {
            path,
            bytes_max: BYTES,
            namespace: "/proc/self/ns/mnt",
        };
        Self {
            _root: root,
            memory,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        while unmount(&self.memory.path, UnmountFlags::DETACH).is_ok() {}
    }
}

/// How often something is mounted there, by what the calling thread sees.
fn mounts(path: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| *point == path).count()
}

#[test]
fn it_is_mounted_once_however_many_ask_at_once() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| host.memory.open().unwrap());
        }
    });
    assert_eq!(mounts(&host.memory.path), 1);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(SOURCE)).unwrap();
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(line.contains(option), "{line}");
    }
}

#[test]
fn a_shim_in_a_mount_namespace_of_its_own_uses_the_hosts() {
    let host = Host::new();
    std::thread::scope(|scope| {
        let private = scope.spawn(|| {
            leave_host_mounts().unwrap();
            let folder = host.memory.open().unwrap();
            let file = openat(
                folder.directory(),
                c"written",
                OFlags::CREATE | OFlags::WRONLY,
                Mode::RUSR,
            );
            file.unwrap();
            mounts(&host.memory.path)
        });
        assert_eq!(
            private.join().unwrap(),
            0,
            "not in the shim's own namespace"
        );
    });
    assert_eq!(mounts(&host.memory.path), 1);
    host.memory.open().unwrap();
    assert!(host.memory.path.join("written").exists());
    assert_eq!(mounts(&host.memory.path), 1);
}

#[test]
fn a_directory_that_only_bears_the_name_is_not_taken_for_it() {
    let host = Host::new();
    std::fs::create_dir(&host.memory.path).unwrap();
    let left = host.memory.path.join("0a".repeat(32));
    std::fs::write(&left, "of a version without a mount").unwrap();
    host.memory.open().unwrap();
    assert_eq!(mounts(&host.memory.path), 1);
    unmount(&host.memory.path, UnmountFlags::DETACH).unwrap();
    assert!(!left.exists(), "memory that nobody would find again");

    mount(
        c"other",
        &host.memory.path,
        c"tmpfs",
        MountFlags::empty(),
        c"size=64k",
    )
    .unwrap();
    let error = crate::error::chain(&host.memory.open().unwrap_err());
    assert!(
        error.contains("another file system is mounted at"),
        "{error}"
    );
}

#[test]
fn a_larger_setting_makes_it_larger_and_a_smaller_one_does_not_cut_it() {
    let host = Host::new();
    let size = |memory: &Memory| {
        memory.open().unwrap();
        memory.mounted_bytes().unwrap().unwrap()
    };
    assert_eq!(size(&host.memory), BYTES);
    let larger = Memory {
        bytes_max: 2 * BYTES,
        ..host.memory.clone()
    };
    assert_eq!(size(&larger), 2 * BYTES);
    assert_eq!(size(&host.memory), 2 * BYTES);
    assert_eq!(host.memory.budget().bytes_max, BYTES);
    assert_eq!(mounts(&host.memory.path), 1);
}

#[test]
fn it_takes_no_more_than_a_share_of_the_hosts_memory() {
    let memory = Memory {
        path: "/nowhere".into(),
        bytes_max: u64::MAX,
        namespace: HOST_MOUNTS,
    };
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(memory.budget().bytes_max <= kib * 1024 / 4);
}

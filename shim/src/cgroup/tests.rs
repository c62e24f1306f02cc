//! Real cgroups, on whatever part of the hierarchy this machine has as version 2.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, CgroupLimits, claim, mounted_root, remove};
use crate::bundle::CpuLimits;
use crate::error::ErrorCode;

const PATIENCE: Duration = Duration::from_secs(10);

/// Version 2 as such, or beside version 1 (systemd's "hybrid").
fn root() -> PathBuf {
    mounted_root().unwrap_or_else(|_| PathBuf::from("/sys/fs/cgroup/unified"))
}

/// A path of two parts that no other test uses.
fn fresh(name: &str) -> PathBuf {
    root()
        .join(format!("wasmvm-test-{}-{name}", std::process::id()))
        .join("task")
}

/// A process that lives in the cgroup until it is killed.
fn inhabitant(path: &Path) -> Child {
    let mut child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let entered = std::fs::write(path.join("cgroup.procs"), child.id().to_string());
    if entered.is_err() {
        child.kill().unwrap();
    }
    entered.unwrap();
    child
}

#[test]
fn a_cgroup_comes_and_goes_with_its_parent() {
    let path = fresh("plain");
    let cgroup = Cgroup::create(&path, &CgroupLimits::default()).unwrap();
    let inode = |metadata: std::fs::Metadata| metadata.ino();
    let stat = rustix::fs::fstat(cgroup.as_fd()).unwrap();
    assert_eq!(inode(path.metadata().unwrap()), stat.st_ino);
    remove(&path, PATIENCE).unwrap();
    assert!(!path.parent().unwrap().exists());
    remove(&path, PATIENCE).unwrap();
}

#[test]
fn what_lives_in_it_is_killed_at_removal() {
    let path = fresh("inhabited");
    let _cgroup = Cgroup::create(&path, &CgroupLimits::default()).unwrap();
    let mut child = inhabitant(&path);
    let begun = Instant::now();
    remove(&path, PATIENCE).unwrap();
    assert!(
        begun.elapsed() < PATIENCE,
        "it waited for the event, not for the deadline"
    );
    assert!(!path.exists());
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_left_over_is_replaced_and_an_inhabited_one_is_not() {
    let path = fresh("again");
    let _first = Cgroup::create(&path, &CgroupLimits::default()).unwrap();
    let _second = Cgroup::create(&path, &CgroupLimits::default()).unwrap();
    let mut child = inhabitant(&path);
    let error = Cgroup::create(&path, &CgroupLimits::default()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(matches!(error, CgroupError::InUse { .. }), "{error}");
    assert!(path.exists(), "it belongs to whoever is in it");
    let error = claim(&path).unwrap_err();
    assert!(matches!(error, CgroupError::InUse { .. }), "{error}");
    remove(&path, PATIENCE).unwrap();
    child.wait().unwrap();
}

#[test]
fn siblings_come_and_go_at_once() {
    let parent = fresh("siblings").parent().unwrap().to_owned();
    std::thread::scope(|scope| {
        for sibling in 0..4 {
            let path = parent.join(format!("task{sibling}"));
            scope.spawn(move || {
                for _ in 0..50 {
                    Cgroup::create(&path, &CgroupLimits::default()).unwrap();
                    remove(&path, PATIENCE).unwrap();
                }
            });
        }
    });
    assert!(!parent.exists());
}

#[test]
fn limits_are_exact_or_refused() {
    let path = fresh("limits");
    let limits = CgroupLimits {
        memory_bytes_max: Some(64 << 20),
        memory_swap_bytes_max: Some(64 << 20),
        cpu: CpuLimits {
            quota_us: Some(50_000),
            shares: Some(1024),
            ..CpuLimits::default()
        },
        pids_max: Some(100),
        files: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
    };
    let controllers = std::fs::read_to_string(root().join("cgroup.controllers")).unwrap();
    match Cgroup::create(&path, &limits) {
        Ok(_) => {
            for (file, expected) in [
                ("memory.max", "67108864"),
                ("cpu.max", "50000 100000"),
                ("cpu.weight", "39"),
                ("pids.max", "100"),
                ("memory.oom.group", "1"),
            ] {
                let value = std::fs::read_to_string(path.join(file)).unwrap();
                assert_eq!(value.trim(), expected, "{file}");
            }
            remove(&path, PATIENCE).unwrap();
        }
        // A machine whose memory controller is version 1's.
        Err(error) => {
            assert!(!controllers.contains("memory"), "{error}");
            assert_eq!(error.code(), ErrorCode::FailedPrecondition);
            let start = "linux.resources.memory.limit = 67108864 cannot be held";
            assert!(error.to_string().starts_with(start), "{error}");
            assert!(!path.exists(), "nothing is left");
        }
    }
}

#[test]
fn an_unknown_file_is_refused_and_nothing_is_left() {
    let path = fresh("file");
    let files = [("wasmvm.nonsense".to_owned(), "1".to_owned())].into();
    let limits = CgroupLimits {
        files,
        ..CgroupLimits::default()
    };
    let error = Cgroup::create(&path, &limits).unwrap_err();
    let start = "linux.resources.unified = 1 cannot be held: the controller wasmvm is not";
    assert!(error.to_string().starts_with(start), "{error}");
    assert!(!path.exists());
}

#[test]
fn what_is_no_cgroup_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error =
        Cgroup::create(&directory.path().join("a/b"), &CgroupLimits::default()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(
        error
            .to_string()
            .contains("is not cgroup v2; wasmvm needs the unified hierarchy")
    );
    assert!(remove(directory.path(), PATIENCE).is_err());
    assert!(directory.path().exists());
}

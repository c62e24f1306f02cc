//! Real cgroups, in whatever hierarchies this machine has.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::host::{Kind, version_of};
use super::{Cgroup, CgroupError, Hierarchies, Place, Version, remove};
use crate::bundle::{CpuLimits, Limit, Resources};
use crate::error::ErrorCode;

const PATIENCE: Duration = Duration::from_secs(10);

/// A path of two parts that no other test uses.
fn inner(name: &str) -> PathBuf {
    PathBuf::from(format!("wasmvm-test-{}-{name}", std::process::id())).join("task")
}

fn fresh(name: &str) -> Place {
    Hierarchies::find().unwrap().place(&inner(name))
}

fn unlimited() -> Resources {
    Resources::default()
}

/// A process that lives in the cgroup until it is killed.
fn inhabitant(place: &Place) -> Child {
    let mut child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let entered: Result<Vec<()>, _> = place
        .paths()
        .map(|path| fs::write(path.join("cgroup.procs"), child.id().to_string()))
        .collect();
    if entered.is_err() {
        child.kill().unwrap();
    }
    entered.unwrap();
    child
}

#[test]
fn a_cgroup_comes_and_goes_with_its_parent() {
    let place = fresh("plain");
    let cgroup = Cgroup::create(&place, &unlimited()).unwrap();
    let birth = cgroup.birth().unwrap();
    for fd in birth.unified.iter().chain(&birth.procs) {
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        let all: Vec<_> = place.paths().collect();
        assert!(all.iter().any(|place| path.starts_with(place)), "{path:?}");
    }
    assert_eq!(
        birth.unified.iter().count() + birth.procs.len(),
        place.paths().count()
    );
    place.remove(PATIENCE).unwrap();
    for path in place.paths() {
        assert!(!path.parent().unwrap().exists());
    }
    place.remove(PATIENCE).unwrap();
}

#[test]
fn what_lives_in_it_is_killed_at_removal() {
    let place = fresh("inhabited");
    let _cgroup = Cgroup::create(&place, &unlimited()).unwrap();
    let mut child = inhabitant(&place);
    let begun = Instant::now();
    place.remove(PATIENCE).unwrap();
    assert!(
        begun.elapsed() < PATIENCE,
        "it waited for the end, not for the deadline"
    );
    assert!(place.paths().all(|path| !path.exists()));
    assert!(!child.wait().unwrap().success());
}

/// Each hierarchy's directory alone kills: after a crash only some may be there.
#[test]
fn every_hierarchy_ends_what_lives_in_it() {
    let place = fresh("each");
    let _cgroup = Cgroup::create(&place, &unlimited()).unwrap();
    let all: Vec<&Path> = place.paths().collect();
    for path in all {
        let mut child = inhabitant(&place);
        remove(path, PATIENCE).unwrap();
        assert!(!child.wait().unwrap().success());
        let _again = Cgroup::create(&place, &unlimited()).unwrap();
    }
    place.remove(PATIENCE).unwrap();
}

#[test]
fn a_left_over_is_replaced_and_an_inhabited_one_is_not() {
    let place = fresh("again");
    let _first = Cgroup::create(&place, &unlimited()).unwrap();
    let _second = Cgroup::create(&place, &unlimited()).unwrap();
    let mut child = inhabitant(&place);
    let error = Cgroup::create(&place, &unlimited()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(matches!(error, CgroupError::InUse { .. }), "{error}");
    assert!(
        place.paths().all(Path::exists),
        "it belongs to whoever is in it"
    );
    let error = place.claim().unwrap_err();
    assert!(matches!(error, CgroupError::InUse { .. }), "{error}");
    place.remove(PATIENCE).unwrap();
    child.wait().unwrap();
}

#[test]
fn siblings_come_and_go_at_once() {
    let inner = inner("siblings");
    let parent = inner.parent().unwrap();
    let hierarchies = Hierarchies::find().unwrap();
    std::thread::scope(|scope| {
        for sibling in 0..4 {
            let place = hierarchies.place(&parent.join(format!("task{sibling}")));
            scope.spawn(move || {
                for _ in 0..20 {
                    let cgroup = Cgroup::create(&place, &unlimited()).unwrap();
                    drop(cgroup);
                    place.remove(PATIENCE).unwrap();
                }
            });
        }
    });
    for path in hierarchies.place(parent).paths() {
        assert!(!path.exists());
    }
}

/// Whether this machine has the controller, and in which version.
fn version(cgroup: &Cgroup, controller: &str) -> Option<Version> {
    let (directory, version) = cgroup.of(controller)?;
    let listed = || directory.read("cgroup.controllers").unwrap();
    let has = matches!(directory.kind, Kind::Legacy(_)) || listed().contains(controller);
    has.then_some(version)
}

#[test]
fn limits_are_exact_and_change_together() {
    let place = fresh("limits");
    let resources = |mib: u64, quota| Resources {
        memory: Some(Limit::At(mib << 20)),
        memory_swap: Some(Limit::At(mib << 20)),
        cpu: CpuLimits {
            quota_us: Some(quota),
            shares: Some(1024),
            ..CpuLimits::default()
        },
        ..unlimited()
    };
    let Ok(cgroup) = Cgroup::create(&place, &resources(64, Limit::At(50_000))) else {
        // A machine that lacks a controller says so; the fakes cover the rest.
        assert!(place.paths().all(|path| !path.exists()), "nothing is left");
        return;
    };
    let check = |expected: [[&str; 2]; 2]| {
        let [memory, quota] = ["memory", "cpu"].map(|name| version(&cgroup, name).unwrap());
        let at = |version| usize::from(version == Version::V2);
        let file = ["memory.limit_in_bytes", "memory.max"][at(memory)];
        assert_eq!(cgroup.read("memory", file).unwrap().trim(), expected[0][0]);
        let file = ["cpu.cfs_quota_us", "cpu.max"][at(quota)];
        assert_eq!(
            cgroup.read("cpu", file).unwrap().trim(),
            expected[1][at(quota)]
        );
    };
    let before = [["67108864", ""], ["50000", "50000 100000"]];
    check(before);
    cgroup.change(&resources(128, Limit::Unlimited)).unwrap();
    check([["134217728", ""], ["-1", "max 100000"]]);
    cgroup.change(&resources(64, Limit::At(50_000))).unwrap();
    check(before);
    // Shorter than the kernel's shortest: the memory limit stays too.
    let error = cgroup.change(&resources(32, Limit::At(1))).unwrap_err();
    let start = "linux.resources.cpu.quota = 1";
    assert!(error.to_string().starts_with(start), "{error}");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    check(before);
    if version(&cgroup, "pids").is_some() {
        assert_eq!(cgroup.read("pids", "pids.max").unwrap().trim(), "64");
    }
    place.remove(PATIENCE).unwrap();
    assert_eq!(cgroup.read("memory", "memory.stat"), None);
}

#[test]
fn memory_that_is_held_is_not_taken() {
    let place = fresh("held");
    let cgroup = Cgroup::create(&place, &unlimited()).unwrap();
    let Some(version) = version(&cgroup, "memory") else {
        return place.remove(PATIENCE).unwrap();
    };
    // A shell that has read 64 MiB into a variable.
    let procs: Vec<String> = place
        .paths()
        .map(|path| path.join("cgroup.procs").display().to_string())
        .collect();
    let script =
        "for file; do echo 0 > $file; done; x=$(head -c 64M /dev/zero | tr '\\0' x); echo; read y";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(&procs)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let limit = |bytes| Resources {
        memory: Some(Limit::At(bytes)),
        memory_swap: Some(Limit::At(bytes)),
        ..unlimited()
    };
    let error = cgroup.change(&limit(24 << 20)).unwrap_err();
    assert!(matches!(error, CgroupError::MemoryHeld { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(child.try_wait().unwrap().is_none(), "nobody was killed");
    assert_eq!(cgroup.oom_kills(), 0);
    if version == Version::V2 {
        assert_eq!(cgroup.read("memory", "memory.high").unwrap().trim(), "max");
    }
    cgroup.change(&limit(256 << 20)).unwrap();
    place.remove(PATIENCE).unwrap();
    child.wait().unwrap();
}

#[test]
fn an_end_for_want_of_memory_is_counted() {
    let place = fresh("oom");
    let resources = Resources {
        memory: Some(Limit::At(32 << 20)),
        memory_swap: Some(Limit::At(32 << 20)),
        ..unlimited()
    };
    let Ok(cgroup) = Cgroup::create(&place, &resources) else {
        return;
    };
    let procs: Vec<String> = place
        .paths()
        .map(|path| path.join("cgroup.procs").display().to_string())
        .collect();
    let script = "for file; do echo 0 > $file; done; x=$(head -c 64M /dev/zero | tr '\\0' x)";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(&procs)
        .spawn()
        .unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(cgroup.oom_kills() > 0);
    place.remove(PATIENCE).unwrap();
}

#[test]
fn an_unknown_file_is_refused_and_nothing_is_left() {
    let place = fresh("file");
    let resources = Resources {
        files: [("wasmvm.nonsense".to_owned(), "1".to_owned())].into(),
        ..unlimited()
    };
    let error = Cgroup::create(&place, &resources).unwrap_err();
    let start = "linux.resources.unified.wasmvm.nonsense = 1 cannot be held: the controller wasmvm";
    assert!(error.to_string().starts_with(start), "{error}");
    assert!(place.paths().all(|path| !path.exists()));
}

#[test]
fn what_is_no_cgroup_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place(vec![(directory.path().join("a/b"), Kind::Unified)]);
    let error = Cgroup::create(&place, &unlimited()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(error.to_string().contains("is part of no cgroup hierarchy"));
    assert!(remove(directory.path(), PATIENCE).is_err());
    assert!(directory.path().exists());
    assert_eq!(version_of(directory.path()), None);
}

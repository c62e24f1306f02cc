//! Real cgroups, in whatever hierarchies this machine has.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::directory::Origin;
use super::host::{Kind, version_of};
use super::{Cgroup, CgroupError, Hierarchies, Place, Version};
use crate::bundle::{CpuLimits, Limit, Resources};
use crate::cleanup;
use crate::error::{Coded as _, ErrorCode};
use crate::journal::{DirectoryIdentity, Journal, Step};

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

/// A task's journal, and through it what is undone.
struct Task {
    root: TempDir,
    journal: Arc<Journal>,
}

impl Task {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let journal =
            Journal::create(root.path(), "default", "web", Path::new("/b"), None).unwrap();
        let journal = Arc::new(journal);
        Self { root, journal }
    }

    fn create(&self, place: &Place, resources: &Resources) -> Result<Cgroup, CgroupError> {
        Cgroup::create(place, resources, &self.journal)
    }

    fn undo(&self) {
        cleanup::undo(self.root.path(), "default", "web").unwrap();
    }
}

/// A directory in each hierarchy that is not the task's.
struct Prepared(Place);

impl Prepared {
    fn new(place: &Place) -> Self {
        for path in place.paths() {
            fs::create_dir_all(path).unwrap();
            // Nobody may enter v1's cpuset before it has what its parent has.
            for directory in [path.parent().unwrap(), path] {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let (own, above) = (directory.join(file), directory.parent().unwrap());
                    if fs::read_to_string(&own).is_ok_and(|list| list.trim().is_empty()) {
                        let _ = fs::write(own, fs::read(above.join(file)).unwrap_or_default());
                    }
                }
            }
        }
        Self(place.clone())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for path in self.0.paths() {
            let _ = fs::remove_dir(path);
            let _ = fs::remove_dir(path.parent().unwrap());
        }
    }
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

/// Ends a process that was left alone.
fn end(mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "nobody was killed");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_cgroup_comes_and_goes_with_its_parent() {
    let (task, place) = (Task::new(), fresh("plain"));
    let cgroup = task.create(&place, &unlimited()).unwrap();
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
    task.undo();
    for path in place.paths() {
        assert!(!path.parent().unwrap().exists());
    }
    task.undo();
}

#[test]
fn what_lives_in_it_is_killed_at_removal() {
    let (task, place) = (Task::new(), fresh("inhabited"));
    let _cgroup = task.create(&place, &unlimited()).unwrap();
    let mut child = inhabitant(&place);
    task.undo();
    assert!(place.paths().all(|path| !path.exists()));
    assert!(!child.wait().unwrap().success());
}

/// Each hierarchy's directory alone kills: after a crash only some may be there.
#[test]
fn every_hierarchy_ends_what_lives_in_it() {
    let place = fresh("each");
    let paths: Vec<&Path> = place.paths().collect();
    for path in paths {
        let task = Task::new();
        let cgroup = task.create(&place, &unlimited()).unwrap();
        let mut child = inhabitant(&place);
        let mut directories = cgroup.directories.iter();
        let directory = directories.find(|directory| directory.path == path);
        let made = directory.unwrap().identity().unwrap();
        super::remove(&made, cleanup::KILL_MAX).unwrap();
        assert!(!child.wait().unwrap().success());
        drop(cgroup);
        task.undo();
    }
}

#[test]
fn what_somebody_makes_meanwhile_is_neither_taken_nor_killed() {
    let (task, place) = (Task::new(), fresh("meanwhile"));
    // As far as a task is that has looked, and is about to make its cgroup.
    let paths = place.paths().map(Path::to_owned).collect();
    task.journal.record(&Step::CgroupWanted { paths }).unwrap();
    let theirs = Prepared::new(&place);
    let child = inhabitant(&place);
    let error = task.create(&place, &unlimited()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(matches!(error, CgroupError::InUse { .. }), "{error}");
    task.undo();
    assert!(place.paths().all(Path::exists));
    end(child);
    drop(theirs);
}

#[test]
fn a_later_cgroup_of_the_same_path_is_left_alone() {
    let (task, place) = (Task::new(), fresh("later"));
    drop(task.create(&place, &unlimited()).unwrap());
    // Its own is gone, as after a reboot of whoever manages cgroups, and somebody has made another.
    place.paths().for_each(|path| fs::remove_dir(path).unwrap());
    let theirs = Prepared::new(&place);
    let child = inhabitant(&place);
    task.undo();
    assert!(place.paths().all(Path::exists));
    end(child);
    drop(theirs);
}

#[test]
fn a_left_over_of_ours_is_replaced_and_an_inhabited_one_is_not() {
    let (first, second, place) = (Task::new(), Task::new(), fresh("again"));
    // Its shim was killed before it could tell what it has made.
    let left = first.create(&place, &unlimited()).unwrap();
    let inodes = |cgroup: &Cgroup| -> Vec<u64> {
        let all = cgroup.directories.iter();
        all.map(|directory| directory.identity().unwrap().inode)
            .collect()
    };
    let before = inodes(&left);
    let error = second.create(&place, &unlimited()).unwrap_err();
    assert!(
        matches!(error, CgroupError::InUse { .. }),
        "its shim lives: {error}"
    );
    second.undo();
    let second = Task::new();
    drop(left);
    let again = second.create(&place, &unlimited()).unwrap();
    assert!(before.iter().all(|inode| !inodes(&again).contains(inode)));
    drop(again);
    let mut child = inhabitant(&place);
    let third = Task::new();
    let error = third.create(&place, &unlimited()).unwrap_err();
    assert!(matches!(error, CgroupError::InUse { .. }), "{error}");
    third.undo();
    first.undo();
    assert!(
        child.try_wait().unwrap().is_none(),
        "it is the second task's"
    );
    second.undo();
    child.wait().unwrap();
    assert!(place.paths().all(|path| !path.exists()));
}

/// The operator's cgroup, with a limit of her own.
#[test]
fn an_empty_cgroup_is_joined_and_gets_its_limits_back() {
    let (task, place) = (Task::new(), fresh("prepared"));
    let theirs = Prepared::new(&place);
    let put = |name: &str, value: &str| {
        let mut paths = place.paths().map(|path| path.join(name));
        let file = paths.find(|file| file.exists())?;
        fs::write(&file, value).unwrap();
        Some(file)
    };
    let memory =
        put("memory.max", "268435456").or_else(|| put("memory.limit_in_bytes", "268435456"));
    let pids = put("pids.max", "321");
    let read = |file: &Option<PathBuf>| -> Option<String> {
        let text = fs::read_to_string(file.as_ref()?).unwrap();
        Some(text.trim().to_owned())
    };
    let resources = Resources {
        memory: memory.is_some().then_some(Limit::At(64 << 20)),
        ..unlimited()
    };
    let cgroup = task.create(&place, &resources).unwrap();
    let joined = |directory: &super::Directory| directory.origin == Origin::Joined;
    assert!(cgroup.directories.iter().all(joined));
    let expected = |value: &str| memory.is_some().then(|| value.to_owned());
    assert_eq!(read(&memory), expected("67108864"));
    assert_eq!(
        read(&pids).as_deref().unwrap_or("321"),
        "321",
        "not named by the spec"
    );
    // An Update names another, twice.
    if pids.is_some() {
        for limit in [40, 50] {
            let pids = Some(Limit::At(limit));
            cgroup
                .change(&Resources {
                    pids,
                    ..unlimited()
                })
                .unwrap();
        }
        assert_eq!(read(&pids).unwrap(), "50");
    }
    drop(cgroup);
    let child = inhabitant(&place);
    task.undo();
    assert!(place.paths().all(Path::exists), "it is not ours to remove");
    assert_eq!(read(&memory), expected("268435456"));
    assert_eq!(read(&pids).as_deref().unwrap_or("321"), "321");
    end(child);
    task.undo();
    drop(theirs);
}

#[test]
fn a_parent_that_somebody_else_made_stays() {
    let (task, place) = (Task::new(), fresh("parent"));
    for path in place.paths() {
        fs::create_dir(path.parent().unwrap()).unwrap();
    }
    let _cgroup = task.create(&place, &unlimited()).unwrap();
    task.undo();
    for path in place.paths() {
        assert!(!path.exists());
        fs::remove_dir(path.parent().unwrap()).unwrap();
    }
}

/// The shim was killed between the journal's two lines.
#[test]
fn what_was_only_about_to_be_made_goes_when_it_is_empty() {
    let (task, place) = (Task::new(), fresh("wanted"));
    let paths = place
        .paths()
        .flat_map(|path| [path.parent().unwrap(), path]);
    let paths = paths.map(Path::to_owned).collect();
    task.journal.record(&Step::CgroupWanted { paths }).unwrap();
    place
        .paths()
        .for_each(|path| fs::create_dir_all(path).unwrap());
    task.undo();
    for path in place.paths() {
        assert!(!path.parent().unwrap().exists());
    }
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
                    let task = Task::new();
                    drop(task.create(&place, &unlimited()).unwrap());
                    task.undo();
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
    let (task, place) = (Task::new(), fresh("limits"));
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
    let Ok(cgroup) = task.create(&place, &resources(64, Limit::At(50_000))) else {
        // A machine that lacks a controller says so; the fakes cover the rest.
        task.undo();
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
    task.undo();
    assert_eq!(cgroup.read("memory", "memory.stat"), None);
}

#[test]
fn memory_that_is_held_is_not_taken() {
    let (task, place) = (Task::new(), fresh("held"));
    let cgroup = task.create(&place, &unlimited()).unwrap();
    let Some(version) = version(&cgroup, "memory") else {
        return task.undo();
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
    task.undo();
    child.wait().unwrap();
}

#[test]
fn an_end_for_want_of_memory_is_counted() {
    let (task, place) = (Task::new(), fresh("oom"));
    let resources = Resources {
        memory: Some(Limit::At(32 << 20)),
        memory_swap: Some(Limit::At(32 << 20)),
        ..unlimited()
    };
    let Ok(cgroup) = task.create(&place, &resources) else {
        return task.undo();
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
    task.undo();
}

#[test]
fn an_unknown_file_is_refused_and_nothing_is_left() {
    let (task, place) = (Task::new(), fresh("file"));
    let resources = Resources {
        files: [("wasmvm.nonsense".to_owned(), "1".to_owned())].into(),
        ..unlimited()
    };
    let error = task.create(&place, &resources).unwrap_err();
    let start = "linux.resources.unified.wasmvm.nonsense = 1 cannot be held: the controller wasmvm";
    assert!(error.to_string().starts_with(start), "{error}");
    task.undo();
    assert!(place.paths().all(|path| !path.exists()));
}

#[test]
fn what_is_no_cgroup_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place(vec![(directory.path().join("a/b"), Kind::Unified)]);
    let task = Task::new();
    let error = task.create(&place, &unlimited()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(error.to_string().contains("is part of no cgroup hierarchy"));
    assert!(super::remove_by_path(directory.path(), cleanup::KILL_MAX).is_err());
    assert!(directory.path().exists());
    assert_eq!(version_of(directory.path()), None);
}

#[test]
fn what_is_no_cgroup_is_left_alone_whatever_a_journal_says() {
    let directory = tempfile::tempdir().unwrap();
    let (empty, full) = (
        directory.path().join("empty"),
        directory.path().join("full"),
    );
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&full).unwrap();
    let file = full.join("cgroup.kill");
    fs::write(&file, "kept").unwrap();
    let hierarchy = Hierarchies::find().unwrap().place(Path::new(""));
    let root = hierarchy.paths().next().unwrap();
    // A path that leaves the hierarchy in which it seems to lie.
    let climbing = |path: &Path| {
        let up = root.components().skip(1).map(|_| "..").collect::<PathBuf>();
        root.join(up).join(path.strip_prefix("/").unwrap())
    };
    for path in [&empty, &full, &climbing(&empty), &climbing(&full)] {
        let identity = DirectoryIdentity {
            path: path.clone(),
            inode: fs::metadata(path).unwrap().ino(),
        };
        let _refused = super::remove(&identity, cleanup::KILL_MAX);
        let _refused = super::remove_by_path(path, cleanup::KILL_MAX);
        super::remove_wanted(path, false);
        super::restore(&identity, "cgroup.kill", "1").unwrap();
        let left = [empty.exists(), fs::read_to_string(&file).unwrap() == "kept"];
        assert_eq!(left, [true; 2], "{}", path.display());
    }
}

#[test]
fn a_file_of_a_cgroup_has_one_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("task")).unwrap();
    fs::write(directory.path().join("limit"), "kept").unwrap();
    let cgroup = Cgroup::fake(&[(&directory.path().join("task"), &[])]);
    assert_eq!(cgroup.read("memory", "../limit"), None);
}

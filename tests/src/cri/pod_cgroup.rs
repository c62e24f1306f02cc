//! A pod's cgroup, which a kubelet makes and removes, with the driver `cgroupfs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";
/// All pods' cgroup.
const PODS: &str = "kubepods";
const CONTROLLERS: &str = "+cpu +memory +pids";
/// A cgroup is busy for a moment after its last process has ended.
const EMPTY_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Below `/kubepods`, in every hierarchy of the host.
#[derive(Debug)]
pub struct PodCgroup {
    parent: String,
    folders: Vec<PathBuf>,
}

impl PodCgroup {
    /// Makes it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn make(uid: &str) -> Self {
        let parent = format!("/{PODS}/pod{uid}");
        let folders: Vec<_> = hierarchies()
            .iter()
            .map(|hierarchy| {
                let pods = hierarchy.join(PODS);
                delegate(hierarchy);
                fs::create_dir_all(&pods).expect("made");
                delegate(&pods);
                let folder = pods.join(format!("pod{uid}"));
                fs::create_dir(&folder).expect("made");
                folder
            })
            .collect();
        Self { parent, folders }
    }

    /// What CRI is told.
    #[must_use]
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// Removes it: everything in it must have ended.
    ///
    /// # Panics
    /// When something stays.
    #[track_caller]
    pub fn remove(&mut self) {
        for folder in self.folders.drain(..) {
            remove_empty(&folder);
            // Another pod's may be in it.
            let _ = folder.parent().map(fs::remove_dir);
        }
    }
}

/// The unified one, or version 1's.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).expect("cgroups are mounted").flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Gives version 2's controllers to what is below; a cpuset of version 1 gets what its parent has.
fn delegate(folder: &Path) {
    let control = folder.join("cgroup.subtree_control");
    if control.exists() {
        fs::write(control, CONTROLLERS).expect("the host has the controllers");
    }
    let clone = folder.join("cgroup.clone_children");
    if clone.exists() && folder.join("cpuset.cpus").exists() {
        fs::write(clone, "1").expect("the kernel takes it");
    }
}

#[track_caller]
fn remove_empty(folder: &Path) {
    let start = Instant::now();
    while let Err(error) = fs::remove_dir(folder) {
        let late = start.elapsed() > EMPTY_MAX;
        assert!(
            !late,
            "{}: {error}; in it: {:?}",
            folder.display(),
            inside(folder)
        );
        thread::sleep(POLL);
    }
}

/// The cgroups below, and the pids of the folder's own.
fn inside(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path().display().to_string());
    let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    below.chain(pids.lines().map(str::to_owned)).collect()
}

//! The task's cgroup: made from the spec, entered by the VMM at its birth, changed by Update, read by
//! Stats, removed at Delete. Only the VMM lives in it.
//!
//! Only directories that this task has made are removed, known by their inodes. An empty cgroup that exists already
//! was prepared by an operator: the task joins it, its limits that the spec or an Update names are put back when
//! the task has ended, and its directories stay.
//!
//! A host has one hierarchy (cgroup v2), several (v1) or both kinds (hybrid); the cgroup is one
//! directory in each of them ([`Place`]). A controller is used where the host has it: in a v1 hierarchy of its own
//! before the unified one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

pub(crate) use self::error::CgroupError;
pub(crate) use self::host::{Hierarchies, Place, Version};
pub(crate) use self::path::cgroup_path;
pub(crate) use self::remove::{remove, remove_by_path, remove_wanted, restore};

use self::directory::Directory;
#[cfg(test)]
use self::directory::Origin;
use self::host::Kind;
use crate::bundle::{Resources, TaskSpec};
use crate::error::Refusal;
use crate::journal::Journal;
use crate::off_thread::step_off_thread;

mod change;
mod directory;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) use self::host::fuzz;
mod host;
mod limits;
mod make;
mod path;
mod remove;
#[cfg(test)]
mod tests;

/// A cgroup that exists.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directories: Vec<Directory>,
    /// Records the first values of a joined directory's limits; `None` in a test's fake.
    journal: Option<Arc<Journal>>,
}

/// Descriptors by which a process is born into a cgroup.
#[derive(Debug)]
pub(crate) struct Birth {
    /// Directory for `clone3(CLONE_INTO_CGROUP)`, where the host has a unified hierarchy.
    pub unified: Option<OwnedFd>,
    /// `cgroup.procs` of the v1 hierarchies, into which the child writes itself before all else.
    pub procs: Vec<OwnedFd>,
}

impl Cgroup {
    /// Makes the cgroup with its limits, or joins an empty one that exists. Every step that has to be undone is
    /// in the journal, also when this fails.
    ///
    /// # Errors
    /// [`CgroupError`]; `InUse` when the cgroup has processes or cgroups of its own, or another task holds it.
    pub(crate) fn create(
        place: &Place,
        resources: &Resources,
        journal: &Arc<Journal>,
    ) -> Result<Self, CgroupError> {
        let cgroup = Self {
            directories: make::directories(place, journal)?,
            journal: Some(Arc::clone(journal)),
        };
        make::hand_down(&cgroup)?;
        limits::first_lines(resources, &cgroup)?
            .iter()
            .try_for_each(|line| change::write(&cgroup, line).map(drop))?;
        Ok(cgroup)
    }

    /// [`Cgroup::create`], where the spec of a task wants its cgroup, on a thread of its own.
    ///
    /// # Errors
    /// [`CgroupError`], translated for containerd.
    pub(crate) async fn of_task(
        namespace: &str,
        id: &str,
        spec: &Arc<TaskSpec>,
        journal: &Arc<Journal>,
    ) -> Result<Self, Refusal> {
        let inner = cgroup_path(spec.cgroup_path.as_deref(), namespace, id)?;
        let (spec, journal) = (spec.clone(), journal.clone());
        step_off_thread(move || {
            Self::create(
                &Hierarchies::find()?.place(&inner),
                &spec.resources,
                &journal,
            )
        })
        .await
    }

    /// Version of cgroups that Stats reports.
    #[must_use]
    pub(crate) fn version(&self) -> Version {
        let legacy = |directory: &Directory| matches!(directory.kind, Kind::Legacy(_));
        if self.directories.iter().any(legacy) {
            Version::V1
        } else {
            Version::V2
        }
    }

    /// Descriptors for a process that is to be born into the cgroup.
    ///
    /// # Errors
    /// A descriptor cannot be opened or copied.
    pub(crate) fn birth(&self) -> Result<Birth, CgroupError> {
        let (mut unified, mut procs) = (None, Vec::new());
        for directory in &self.directories {
            match directory.kind {
                Kind::Unified => unified = Some(directory.try_clone()?),
                Kind::Legacy(_) => procs.push(directory.open_procs()?),
            }
        }
        Ok(Birth { unified, procs })
    }

    /// Reads one file of a controller; `None` when there is no such file, or the cgroup was removed.
    #[must_use]
    pub(crate) fn read(&self, controller: &str, file: &str) -> Option<String> {
        self.of(controller)?.0.read(file).ok()
    }

    /// Number of processes in the cgroup that the kernel has OOM-killed (cgroup-v2.rst,
    /// `memory.events`; v1: `memory.oom_control`).
    #[must_use]
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match self.of("memory") {
            Some((_, Version::V2)) => "memory.events",
            _ => "memory.oom_control",
        };
        let text = self.read("memory", file).unwrap_or_default();
        let mut counts = text
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "));
        counts
            .next()
            .and_then(|count| count.parse().ok())
            .unwrap_or(0)
    }

    /// The directory that a controller is in, or would be in.
    fn of(&self, controller: &str) -> Option<(&Directory, Version)> {
        let legacy = self.directories.iter().find(|directory| {
            matches!(&directory.kind, Kind::Legacy(names) if names.iter().any(|name| name == controller))
        });
        let unified = || {
            let mut all = self.directories.iter();
            all.find(|directory| directory.kind == Kind::Unified)
        };
        match legacy {
            Some(directory) => Some((directory, Version::V1)),
            None => unified().map(|directory| (directory, Version::V2)),
        }
    }

    /// Stands a cgroup on plain directories, for tests.
    #[cfg(test)]
    pub(crate) fn fake(directories: &[(&Path, &[&str])]) -> Self {
        let open = |(path, names): &(&Path, &[&str])| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let kind = if names.is_empty() {
                Kind::Unified
            } else {
                Kind::Legacy(names)
            };
            Directory::open(path, kind, Origin::Made).unwrap()
        };
        Self {
            directories: directories.iter().map(open).collect(),
            journal: None,
        }
    }
}

fn read(path: &Path, name: &str) -> Result<String, CgroupError> {
    let file = path.join(name);
    std::fs::read_to_string(&file).map_err(|source| CgroupError::at(&file, "read", source))
}

fn write(path: &Path, name: &str, value: &str) -> Result<(), CgroupError> {
    let file = path.join(name);
    // Not created when absent: a cgroup's files are the kernel's.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| CgroupError::Write {
            file,
            value: value.to_owned(),
            source,
        })
}

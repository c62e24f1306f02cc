//! The cgroup of one compiler VM, and its part of the task's journal: both are removed when the compile has
//! ended, in whatever way.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::bundle::Resources;
use crate::cgroup::{Cgroup, Hierarchies, Place};
use crate::cleanup::{self, CleanupError};
use crate::error::{Refusal, chain};
use crate::journal::Journal;
use crate::off_thread::step_off_thread;

/// The cgroup of all compiler VMs of the host, below the root of each hierarchy.
const COMPILERS: &str = "wasmvm-compile";

/// Files of the compilers' cgroup: a fifth of the default weight (cgroup-v2.rst, cgroup-v1's `cpu.shares`),
/// and no swap.
const GIVE_WAY: [(&str, &str); 3] = [
    ("cpu.weight", "20"),
    ("cpu.shares", "204"),
    ("memory.swap.max", "0"),
];

/// The cgroup of one compiler VM. Its drop removes the cgroup with what lives in it.
#[derive(Debug)]
pub(super) struct CompilerCgroup {
    cgroup: Cgroup,
    part: Part,
}

/// The path of the cgroup of a task's compiler with this number: a level for each name, since names may
/// hold any character that would join them.
pub(super) fn compiler_cgroup_path(namespace: &str, id: &str, number: u32) -> PathBuf {
    let task = Path::new(COMPILERS).join(namespace).join(id);
    task.join(number.to_string())
}

impl CompilerCgroup {
    /// Makes the cgroup with its limits. Blocks.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left.
    pub(super) fn make(inner: &Path, limits: &Resources, part: Journal) -> Result<Self, Refusal> {
        let journal = Arc::new(part);
        let part = Part(Some(Arc::clone(&journal)));
        let hierarchies = Hierarchies::find()?;
        let cgroup = Cgroup::create(&hierarchies.place(inner), limits, &journal)?;
        give_way(&hierarchies.place(Path::new(COMPILERS)));
        Ok(Self { cgroup, part })
    }

    /// The cgroup, for the processes that are to be born into it.
    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Removes the cgroup with what lives in it.
    ///
    /// # Errors
    /// [`Refusal`]; the journal is kept then.
    pub(super) async fn remove(mut self) -> Result<(), Refusal> {
        match self.part.0.take() {
            Some(journal) => step_off_thread(move || cleanup::undo_part(journal.path())).await,
            None => Ok(()),
        }
    }
}

/// The journal that a drop undoes, unless `remove` has taken it out.
#[derive(Debug)]
struct Part(Option<Arc<Journal>>);

impl Drop for Part {
    fn drop(&mut self) {
        let Some(journal) = self.0.take() else {
            return;
        };
        let undo = move || {
            let undone: Result<(), CleanupError> = cleanup::undo_part(journal.path());
            if let Err(error) = undone {
                tracing::warn!(error = chain(&error), "a compiler has left something");
            }
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(undo)),
            Err(_) => undo(),
        }
    }
}

/// Gives all compilers together less of a busy processor than tasks: no tenant's first start is to be felt
/// by others' programs. A file that cannot be written does not fail a start.
fn give_way(compilers: &Place) {
    for directory in compilers.paths() {
        for (file, value) in GIVE_WAY {
            let path = directory.join(file);
            let opened = OpenOptions::new().write(true).open(&path);
            match opened.and_then(|mut file| file.write_all(value.as_bytes())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), %error, "cannot be written");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{self, Step};

    /// Names may hold every character that could join them.
    #[test]
    fn no_two_compilers_share_a_cgroup() {
        let all = [
            ("a-b", "c", 0),
            ("a", "b-c", 0),
            ("a", "x", 1),
            ("a", "x.1", 0),
            ("a", "x.1", 1),
        ];
        let paths = all.map(|(namespace, id, number)| compiler_cgroup_path(namespace, id, number));
        for (index, path) in paths.iter().enumerate() {
            let others = paths.iter().skip(index + 1);
            let meets = |other: &PathBuf| other.starts_with(path) || path.starts_with(other);
            assert!(others.clone().all(|other| !meets(other)), "{path:?}");
        }
    }

    #[tokio::test]
    async fn it_goes_with_its_journal_however_the_compile_ends() {
        let root = tempfile::tempdir().unwrap();
        let journal =
            Journal::create(root.path(), "default", "web", Path::new("/b"), None).unwrap();
        let inner = |number| {
            let namespace = format!("test-{}", std::process::id());
            compiler_cgroup_path(&namespace, "web", number)
        };
        let make = |number: u32| {
            let part = journal.part(&number.to_string()).unwrap();
            CompilerCgroup::make(&inner(number), &Resources::default(), part).unwrap()
        };
        let there = |number| {
            let place = Hierarchies::find().unwrap().place(&inner(number));
            place.paths().any(Path::exists)
        };
        let parts = || journal::parts(root.path(), "default", "web").unwrap().len();
        let (one, two) = (make(0), make(1));
        assert!(there(0) && there(1));
        assert_eq!(parts(), 2);
        one.remove().await.unwrap();
        assert!(!there(0));
        drop(two);
        while there(1) || parts() > 0 {
            tokio::task::yield_now().await;
        }
        // The shim was killed: the task's end takes it along.
        let left = journal.part("2").unwrap();
        let path = inner(2).parent().unwrap().to_owned();
        let paths = vec![path];
        left.record(&Step::CgroupWanted { paths }).unwrap();
        cleanup::undo(root.path(), "default", "web").unwrap();
        assert_eq!(parts(), 0);
    }
}

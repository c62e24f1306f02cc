//! The programs that the node's processes run, known by their files and not by their names.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Name of the process that starts the kernel's threads.
const KERNEL: &str = "kthreadd";

/// The files of the programs that run, as device and inode; `None` where the node's processes cannot be seen.
#[derive(Debug)]
pub(super) struct Running(Option<HashSet<(u64, u64)>>);

impl Running {
    /// Looks at all processes below `proc`, once.
    pub(super) fn of(proc: &Path) -> Self {
        // Process 2 is the kernel's in the node's PID namespace, and in no other.
        let second = fs::read_to_string(proc.join("2/comm"));
        if !second.is_ok_and(|name| name.trim_end() == KERNEL) {
            return Self(None);
        }
        let entries = fs::read_dir(proc).into_iter().flatten().flatten();
        let programs = entries.filter_map(|entry| identity(&entry.path().join("exe")));
        Self(Some(programs.collect()))
    }

    /// Whether a process runs, or may run, the program in `file`.
    pub(super) fn has(&self, file: &Path) -> bool {
        match &self.0 {
            None => true,
            Some(programs) => identity(file).is_some_and(|file| programs.contains(&file)),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_program_runs_while_a_process_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        for file in [&ours, &other] {
            fs::write(file, "").unwrap();
        }
        let proc = dir.path().join("proc");
        for pid in ["2", "7"] {
            fs::create_dir_all(proc.join(pid)).unwrap();
        }
        fs::write(proc.join("2/comm"), "kthreadd\n").unwrap();
        symlink(&ours, proc.join("7/exe")).unwrap();
        let running = Running::of(&proc);
        assert!(running.has(&ours) && !running.has(&other));
        // The same file by another name.
        let linked = dir.path().join("linked");
        fs::hard_link(&ours, &linked).unwrap();
        assert!(running.has(&linked));
    }

    #[test]
    fn where_the_nodes_processes_are_hidden_everything_may_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Running::of(dir.path()).has(Path::new("/nonexistent")));
        fs::create_dir(dir.path().join("2")).unwrap();
        fs::write(dir.path().join("2/comm"), "pause\n").unwrap();
        assert!(Running::of(dir.path()).has(Path::new("/nonexistent")));
    }
}

//! The cgroup of a process, in whatever version the host has.

use std::fs;
use std::path::PathBuf;

/// One controller's directory of a process' cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
    /// Whether it is version 2's.
    pub unified: bool,
}

impl Cgroup {
    /// Where a controller has the process: a hierarchy of version 1, else the unified one.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    #[track_caller]
    pub fn of(pid: u32, controller: &str) -> Self {
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
        let find = |wanted: &dyn Fn(&str) -> bool| {
            lines.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (names, path) = (fields.next()?, fields.next()?);
                wanted(names).then(|| (names.to_owned(), path.trim_start_matches('/').to_owned()))
            })
        };
        let root = PathBuf::from("/sys/fs/cgroup");
        if let Some((names, path)) = find(&|names| names.split(',').any(|name| name == controller))
        {
            let path = root.join(names).join(path);
            return Self {
                path,
                unified: false,
            };
        }
        let (_, path) = find(&str::is_empty).expect("a unified hierarchy");
        Self {
            path: root.join(path),
            unified: true,
        }
    }

    /// Makes an empty one below the root, as an operator does who shares a host out, with this controller.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn prepare(path: &str, controller: &str) -> Self {
        let root = PathBuf::from("/sys/fs/cgroup");
        let unified = root.join("cgroup.controllers").exists();
        let mut at = if unified { root } else { root.join(controller) };
        for part in path.split('/') {
            if unified {
                let control = at.join("cgroup.subtree_control");
                fs::write(control, format!("+{controller}")).expect("the host has the controller");
            }
            at.push(part);
            if !at.exists() {
                fs::create_dir(&at).expect("made");
            }
        }
        Self { path: at, unified }
    }

    /// Moves a process into it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub fn enter(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("moved");
    }

    /// Removes it, and its parent when that is empty.
    ///
    /// # Panics
    /// When it is gone, or somebody is in it.
    #[track_caller]
    pub fn remove(self) {
        fs::remove_dir(&self.path).expect("it is there and empty");
        let _ = self.path.parent().map(fs::remove_dir);
    }

    /// A file, which has a name in each version, without the line's end.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    #[track_caller]
    pub fn read(&self, v2: &str, v1: &str) -> String {
        let text = fs::read_to_string(self.file(v2, v1)).expect("a file of the cgroup");
        text.trim_end().to_owned()
    }

    /// Writes one, as an operator might.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub fn write(&self, v2: &str, v1: &str, value: &str) {
        fs::write(self.file(v2, v1), value).expect("the kernel takes the value");
    }

    /// The memory limit, bytes.
    #[must_use]
    #[track_caller]
    pub fn memory_limit(&self) -> String {
        self.read("memory.max", "memory.limit_in_bytes")
    }

    fn file(&self, v2: &str, v1: &str) -> PathBuf {
        self.path.join(if self.unified { v2 } else { v1 })
    }
}

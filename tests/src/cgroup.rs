//! The cgroup of a process, in whatever version the host has.

use std::fs;
use std::path::PathBuf;

/// One controller's directory of a process' cgroup.
#[derive(Clone, Debug)]
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

//! The cgroup hierarchies of the host, and a task's place in them.
//!
//! Version 2 is one tree for everything. Version 1 has a tree for each controller or group of them, and
//! may have version 2's beside them, with or without controllers ("hybrid").

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::CgroupError;
use crate::mountinfo::unescape;

/// Directory below which hierarchies are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// File system of version 1: `CGROUP_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const CGROUP1_MAGIC: u64 = 0x0027_e0eb;
/// File system of version 2: `CGROUP2_SUPER_MAGIC`, in the same header.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Hierarchies of version 1 that a task enters: those that limit and count, and systemd's own tree, so that the
/// task's processes are not taken for containerd's.
const WANTED: [&str; 7] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "name=systemd",
    "pids",
];

/// Version of cgroups on a host, as containerd's own metrics see it: 2 only when there is no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Version 1: each controller, or group of them, has a tree of its own.
    V1,
    /// Version 2: one tree for all controllers.
    V2,
}

/// Kind of a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tree of version 2.
    Unified,
    /// Tree of version 1, with these controllers.
    Legacy(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    kind: Kind,
}

/// All hierarchies of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// Finds the hierarchies that are mounted.
    ///
    /// # Errors
    /// [`CgroupError::Version`] when the host has none.
    pub(crate) fn find() -> Result<Self, CgroupError> {
        let root = Path::new(CGROUP_ROOT);
        if magic(root) == Some(CGROUP2_MAGIC) {
            let root = root.to_owned();
            let kind = Kind::Unified;
            return Ok(Self(vec![Hierarchy { root, kind }]));
        }
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read(path).map_err(|err| CgroupError::at(path, "read", err))?;
        Self::parse(&text)
    }

    /// Parses `/proc/self/mountinfo` (proc(5)). Of several mounts of a hierarchy the first counts: later ones
    /// are those of containers.
    fn parse(mountinfo: &[u8]) -> Result<Self, CgroupError> {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.split(|byte| *byte == b'\n') {
            if let Some(hierarchy) = parse_line(line)
                && !found.iter().any(|known| known.kind == hierarchy.kind)
            {
                found.push(hierarchy);
            }
        }
        if found.is_empty() {
            let path = PathBuf::from(CGROUP_ROOT);
            return Err(CgroupError::Version { path });
        }
        Ok(Self(found))
    }

    /// The place of the cgroup with this relative path: a directory below each root.
    #[must_use]
    pub(crate) fn place(&self, inner: &Path) -> Place {
        let directories = self.0.iter();
        Place(
            directories
                .map(|hierarchy| (hierarchy.root.join(inner), hierarchy.kind.clone()))
                .collect(),
        )
    }
}

fn parse_line(line: &[u8]) -> Option<Hierarchy> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(4)?);
    fields.find(|field| *field == b"-")?;
    let kind = fields.next()?;
    let options = std::str::from_utf8(fields.nth(1)?).ok()?;
    let kind = match kind {
        b"cgroup2" => Kind::Unified,
        b"cgroup" => {
            let wanted = options.split(',').filter(|option| WANTED.contains(option));
            let controllers: Vec<String> = wanted.map(ToOwned::to_owned).collect();
            if controllers.is_empty() {
                return None;
            }
            Kind::Legacy(controllers)
        }
        _ => return None,
    };
    Some(Hierarchy { root, kind })
}

/// Place of a cgroup: a directory in each hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Place(pub(super) Vec<(PathBuf, Kind)>);

impl Place {
    /// Absolute paths of the directories.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }
}

/// The version of the hierarchy that the directory is part of; `None` when it is part of none.
pub(super) fn version_of(path: &Path) -> Option<Version> {
    version_by(magic(path)?)
}

/// Whether the open directory is part of a hierarchy.
pub(super) fn is_of_hierarchy(dir: &File) -> bool {
    let stat = rustix::fs::fstatfs(dir).ok();
    let magic = stat.and_then(|stat| u64::try_from(stat.f_type).ok());
    magic.and_then(version_by).is_some()
}

fn version_by(magic: u64) -> Option<Version> {
    match magic {
        CGROUP1_MAGIC => Some(Version::V1),
        CGROUP2_MAGIC => Some(Version::V2),
        _ => None,
    }
}

fn magic(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statfs(path).ok()?;
    u64::try_from(stat.f_type).ok()
}

/// The topmost directory on the path that is part of a hierarchy.
pub(super) fn root_of(path: &Path) -> Result<PathBuf, CgroupError> {
    path.ancestors()
        .filter(|ancestor| version_of(ancestor).is_some())
        .last()
        .map(Path::to_owned)
        .ok_or_else(|| CgroupError::Version {
            path: path.to_owned(),
        })
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:22 / / rw - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
99 24 0:32 /a /var/lib/x/memory rw,relatime - cgroup cgroup rw,memory
";

    fn legacy(controllers: &[&str]) -> Kind {
        Kind::Legacy(controllers.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn each_hierarchy_counts_once() {
        let place = Hierarchies::parse(HYBRID.as_bytes())
            .unwrap()
            .place(Path::new("a/b"));
        let expected = [
            (
                "/sys/fs/cgroup/cpu,cpuacct/a/b",
                legacy(&["cpu", "cpuacct"]),
            ),
            ("/sys/fs/cgroup/memory/a/b", legacy(&["memory"])),
            ("/sys/fs/cgroup/systemd/a/b", legacy(&["name=systemd"])),
            ("/sys/fs/cgroup/unified/a/b", Kind::Unified),
        ];
        assert_eq!(place.0, expected.map(|(path, kind)| (path.into(), kind)));
    }

    #[test]
    fn a_host_without_cgroups_is_refused() {
        let error = Hierarchies::parse(b"24 1 0:22 / / rw - ext4 /dev/vda rw\n").unwrap_err();
        assert!(matches!(error, CgroupError::Version { .. }), "{error}");
    }

    #[test]
    fn this_machine_has_some() {
        let place = Hierarchies::find().unwrap().place(Path::new(""));
        for path in place.paths() {
            assert_eq!(
                root_of(path).unwrap(),
                path.components().collect::<PathBuf>()
            );
        }
    }
}

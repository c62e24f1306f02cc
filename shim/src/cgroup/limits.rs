//! From the spec's resources to the files of a cgroup (cgroup-v2.rst, "Controllers").

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::{CgroupError, read, write};
use crate::bundle::{CpuLimits, TaskSpec};

/// The period of a CPU quota that names none, microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Fewest processes that are allowed: the VMM's own threads live here, the guest's do not.
const PIDS_MIN: u64 = 32;
/// Shares of cgroup v1.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// What a cgroup is made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// `memory.max`, bytes.
    pub memory_bytes_max: Option<u64>,
    /// Memory and swap together, bytes.
    pub memory_swap_bytes_max: Option<u64>,
    /// CPU time and processors.
    pub cpu: CpuLimits,
    /// Most processes and threads.
    pub pids_max: Option<u64>,
    /// Further files, by name.
    pub files: BTreeMap<String, String>,
}

impl From<&TaskSpec> for CgroupLimits {
    fn from(spec: &TaskSpec) -> Self {
        Self {
            memory_bytes_max: spec.memory_bytes_max,
            memory_swap_bytes_max: spec.memory_swap_bytes_max,
            cpu: spec.cpu.clone(),
            pids_max: spec.pids_max,
            files: spec.cgroup_files.clone(),
        }
    }
}

/// One file, and which field of the spec wants it.
type Line = (&'static str, String, &'static str);

impl CgroupLimits {
    pub(super) fn write(&self, path: &Path) -> Result<(), CgroupError> {
        for (name, value, field) in self.lines() {
            write_one(path, name, &value, field)?;
        }
        self.files
            .iter()
            .try_for_each(|(name, value)| write_one(path, name, value, "linux.resources.unified"))
    }

    fn lines(&self) -> Vec<Line> {
        let cpu = &self.cpu;
        let lines = [
            self.memory_bytes_max.map(|bytes| {
                (
                    "memory.max",
                    bytes.to_string(),
                    "linux.resources.memory.limit",
                )
            }),
            self.swap_max()
                .map(|max| ("memory.swap.max", max, "linux.resources.memory.swap")),
            cpu_max(cpu).map(|max| ("cpu.max", max, "linux.resources.cpu.quota")),
            cpu.shares
                .map(|shares| ("cpu.weight", weight(shares), "linux.resources.cpu.shares")),
            cpu.cpus
                .clone()
                .map(|list| ("cpuset.cpus", list, "linux.resources.cpu.cpus")),
            cpu.mems
                .clone()
                .map(|list| ("cpuset.mems", list, "linux.resources.cpu.mems")),
            self.pids_max.map(|max| {
                (
                    "pids.max",
                    max.max(PIDS_MIN).to_string(),
                    "linux.resources.pids.limit",
                )
            }),
        ];
        lines.into_iter().flatten().collect()
    }

    /// OCI counts memory and swap together, cgroup v2 swap alone.
    fn swap_max(&self) -> Option<String> {
        let swap = self.memory_swap_bytes_max?;
        Some(swap.saturating_sub(self.memory_bytes_max?).to_string())
    }
}

fn cpu_max(cpu: &CpuLimits) -> Option<String> {
    if cpu.quota_us.is_none() && cpu.period_us.is_none() {
        return None;
    }
    let quota = cpu
        .quota_us
        .map_or("max".to_owned(), |quota| quota.to_string());
    Some(format!(
        "{quota} {}",
        cpu.period_us.unwrap_or(CPU_PERIOD_US)
    ))
}

/// From shares, 2 to 262144, to a weight, 1 to 10000, linearly: the OCI runtimes' common conversion.
fn weight(shares: u64) -> String {
    let shares = shares.clamp(*SHARES.start(), *SHARES.end());
    let weight = 1 + (shares - SHARES.start()) * 9999 / (SHARES.end() - SHARES.start());
    weight.to_string()
}

fn write_one(path: &Path, name: &str, value: &str, field: &'static str) -> Result<(), CgroupError> {
    let written = write(path, name, value);
    let absent = matches!(&written, Err(CgroupError::Write { source, .. })
        if source.kind() == io::ErrorKind::NotFound);
    let controller = name.split('.').next().unwrap_or_default();
    if absent && !has(path, controller) {
        return Err(CgroupError::Controller {
            field,
            value: value.to_owned(),
            controller: controller.to_owned(),
            path: path.to_owned(),
        });
    }
    if absent && name == "memory.swap.max" {
        tracing::debug!(value, "the host accounts no swap; its limit has no effect");
        return Ok(());
    }
    written
}

fn has(path: &Path, controller: &str) -> bool {
    read(path, "cgroup.controllers")
        .is_ok_and(|list| list.split_whitespace().any(|name| name == controller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_exact() {
        let limits = CgroupLimits {
            memory_bytes_max: Some(64 << 20),
            memory_swap_bytes_max: Some(96 << 20),
            cpu: CpuLimits {
                quota_us: Some(50_000),
                shares: Some(1024),
                cpus: Some("0-1".to_owned()),
                ..CpuLimits::default()
            },
            pids_max: Some(100),
            files: BTreeMap::new(),
        };
        let lines: Vec<_> = limits
            .lines()
            .into_iter()
            .map(|(name, value, _)| (name, value))
            .collect();
        let expected = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "39"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "100"),
        ];
        assert_eq!(
            lines,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn no_limits_write_nothing() {
        assert!(CgroupLimits::default().lines().is_empty());
    }

    #[test]
    fn weights_span_the_scale() {
        assert_eq!(weight(0), "1");
        assert_eq!(weight(2), "1");
        assert_eq!(weight(262_144), "10000");
        assert_eq!(weight(u64::MAX), "10000");
    }

    #[test]
    fn the_vmms_threads_fit() {
        let limits = CgroupLimits {
            pids_max: Some(1),
            ..CgroupLimits::default()
        };
        assert_eq!(limits.lines()[0].1, "32");
    }
}

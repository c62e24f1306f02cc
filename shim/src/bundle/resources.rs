//! `linux.resources`: what the task may use.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::fields::refused;
use super::memory::MEMORY_BYTES_MIN;
use super::{BundleError, CpuLimits};

/// Most files of `linux.resources.unified`.
const UNIFIED_FILES_MAX: usize = 64;

/// The honoured part.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub memory_bytes_max: Option<u64>,
    pub memory_swap_bytes_max: Option<u64>,
    pub cpu: CpuLimits,
    pub pids_max: Option<u64>,
    pub cgroup_files: BTreeMap<String, String>,
}

impl Resources {
    pub fn new(resources: &LinuxResources) -> Result<Self, BundleError> {
        let (memory_bytes_max, memory_swap_bytes_max) = resources
            .memory()
            .as_ref()
            .map_or(Ok((None, None)), memory)?;
        Ok(Self {
            memory_bytes_max,
            memory_swap_bytes_max,
            cpu: resources
                .cpu()
                .as_ref()
                .map_or(Ok(CpuLimits::default()), cpu)?,
            pids_max: resources
                .pids()
                .as_ref()
                .and_then(|pids| positive(pids.limit())),
            cgroup_files: unified(resources)?,
        })
    }
}

/// In OCI zero means "not given" and a negative number "no limit"; for a new cgroup that is the same.
fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

fn memory(memory: &LinuxMemory) -> Result<(Option<u64>, Option<u64>), BundleError> {
    const LIMIT: &str = "linux.resources.memory.limit";
    const SWAP: &str = "linux.resources.memory.swap";
    let limit = memory.limit().and_then(positive);
    if let Some(limit) = limit.filter(|limit| *limit < MEMORY_BYTES_MIN) {
        let reason = format!(
            "too small to boot a guest; the minimum is {MEMORY_BYTES_MIN} bytes ({} MiB)",
            MEMORY_BYTES_MIN >> 20
        );
        return Err(refused(LIMIT, &limit.to_string(), &reason));
    }
    let swap = memory.swap().and_then(positive);
    match (limit, swap) {
        (None, Some(swap)) => {
            let reason = "memory and swap together are limited, but memory is not";
            Err(refused(SWAP, &swap.to_string(), reason))
        }
        (Some(limit), Some(swap)) if swap < limit => {
            let reason = format!("it counts memory and swap together, so it is at least {limit}");
            Err(refused(SWAP, &swap.to_string(), &reason))
        }
        _ => Ok((limit, swap)),
    }
}

fn cpu(cpu: &LinuxCpu) -> Result<CpuLimits, BundleError> {
    let limits = CpuLimits {
        quota_us: cpu.quota().and_then(positive),
        period_us: cpu.period().filter(|period| *period > 0),
        shares: cpu.shares().filter(|shares| *shares > 0),
        cpus: cpu.cpus().clone().filter(|list| !list.is_empty()),
        mems: cpu.mems().clone().filter(|list| !list.is_empty()),
    };
    for (field, list) in [("cpus", &limits.cpus), ("mems", &limits.mems)] {
        if let Some(list) = list.as_ref().filter(|list| !is_number_list(list)) {
            let field = format!("linux.resources.cpu.{field}");
            return Err(refused(
                &field,
                &format!("{list:?}"),
                "not a list such as 0-3,7",
            ));
        }
    }
    Ok(limits)
}

fn is_number_list(list: &str) -> bool {
    list.chars()
        .all(|c| c.is_ascii_digit() || matches!(c, ',' | '-'))
}

/// Files of the task's own cgroup, and of its controllers only: `cgroup.*` steer processes.
fn unified(resources: &LinuxResources) -> Result<BTreeMap<String, String>, BundleError> {
    let files = resources.unified().iter().flatten();
    let files: BTreeMap<String, String> = files
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if files.len() > UNIFIED_FILES_MAX {
        let reason = format!("at most {UNIFIED_FILES_MAX} files are written");
        let quoted = format!("{} files", files.len());
        return Err(refused("linux.resources.unified", &quoted, &reason));
    }
    for (name, value) in &files {
        let field = || format!("linux.resources.unified.{name}");
        let named = name
            .chars()
            .all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '_'));
        if !named || !name.contains('.') || name.starts_with(['.']) || name.starts_with("cgroup.") {
            let reason = "not a file of a cgroup v2 controller";
            return Err(refused(&field(), &format!("{value:?}"), reason));
        }
        if name == "memory.max" {
            let reason = "the memory limit is given by linux.resources.memory.limit";
            return Err(refused(&field(), &format!("{value:?}"), reason));
        }
    }
    Ok(files)
}

//! Resources that the task may use: `linux.resources`, in `config.json` and in containerd's Update.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use serde_json::{Value, json};

use super::error::UPDATE;
use super::fields::{quoted, refused};
use super::memory::MEMORY_BYTES_MIN;
use super::{BundleError, CpuLimits, Limit, Resources, document};

/// Path of the resources in `config.json`.
const FIELD: &str = "linux.resources";

/// Most files of `linux.resources.unified`.
const UNIFIED_FILES_MAX: usize = 64;
/// Longest `LinuxResources` of an Update, bytes. The kubelet's have a few hundred.
const UPDATE_BYTES_MAX: usize = 1 << 20;

impl Resources {
    /// Reads the resources of an Update: a `LinuxResources` in JSON, by the same table of fields as
    /// `config.json`. A field that is not given stays as it is.
    ///
    /// # Errors
    /// [`BundleError`], with the field and its value.
    pub(crate) fn of_update(json: &[u8]) -> Result<Self, BundleError> {
        parse_update(json).map_err(|error| error.of(UPDATE))
    }

    /// Resources of a new task: a limit that is not given means no limit.
    pub(super) fn of_task(resources: &LinuxResources) -> Result<Self, BundleError> {
        let resources = Self::new(resources)?;
        match resources {
            Self {
                memory: None,
                memory_swap: Some(Limit::At(swap)),
                ..
            } => Err(swap_alone(swap)),
            resources => Ok(resources),
        }
    }

    fn new(resources: &LinuxResources) -> Result<Self, BundleError> {
        let (memory, memory_swap) = resources
            .memory()
            .as_ref()
            .map_or(Ok((None, None)), memory)?;
        Ok(Self {
            memory,
            memory_swap,
            cpu: resources
                .cpu()
                .as_ref()
                .map_or(Ok(CpuLimits::default()), cpu)?,
            pids: resources
                .pids()
                .as_ref()
                .and_then(|pids| limit(pids.limit())),
            files: unified(resources)?,
        })
    }
}

fn parse_update(json: &[u8]) -> Result<Resources, BundleError> {
    if json.len() > UPDATE_BYTES_MAX {
        let reason = format!("at most {UPDATE_BYTES_MAX} bytes are read");
        return Err(refused(FIELD, &format!("{} bytes", json.len()), &reason));
    }
    let resources: Value = serde_json::from_slice(json).map_err(|source| BundleError::Type {
        document: UPDATE,
        field: FIELD.to_owned(),
        source,
    })?;
    if !resources.is_object() {
        let reason = "LinuxResources of the OCI specification are an object";
        return Err(refused(FIELD, &quoted(&resources), reason));
    }
    let mut document = json!({"linux": {"resources": resources}});
    document::filter_fields(&mut document, UPDATE)?;
    let given: Option<LinuxResources> = document::section(&document, FIELD)?;
    Resources::new(&given.unwrap_or_default())
}

const SWAP: &str = "linux.resources.memory.swap";

fn swap_alone(swap: u64) -> BundleError {
    let reason = "memory and swap together are limited, but memory is not";
    refused(SWAP, &swap.to_string(), reason)
}

/// A limit as OCI has it: zero means "not given" and a negative number "no limit".
fn limit(value: i64) -> Option<Limit> {
    match value {
        0 => None,
        value => Some(u64::try_from(value).map_or(Limit::Unlimited, Limit::At)),
    }
}

fn memory(memory: &LinuxMemory) -> Result<(Option<Limit>, Option<Limit>), BundleError> {
    const LIMIT: &str = "linux.resources.memory.limit";
    let bytes = memory.limit().and_then(limit);
    if let Some(Limit::At(bytes)) = bytes
        && bytes < MEMORY_BYTES_MIN
    {
        let reason = format!(
            "too small to boot a guest; the minimum is {MEMORY_BYTES_MIN} bytes ({} MiB): raise the limit (-m 24m, a pod's \
             resources.limits.memory), or leave it out",
            MEMORY_BYTES_MIN >> 20
        );
        return Err(refused(LIMIT, &bytes.to_string(), &reason));
    }
    let swap = memory.swap().and_then(limit);
    match (bytes, swap) {
        (Some(Limit::Unlimited), Some(Limit::At(swap))) => Err(swap_alone(swap)),
        (Some(Limit::At(bytes)), Some(Limit::At(swap))) if swap < bytes => {
            let reason = format!("it counts memory and swap together, so it is at least {bytes}");
            Err(refused(SWAP, &swap.to_string(), &reason))
        }
        _ => Ok((bytes, swap)),
    }
}

fn cpu(cpu: &LinuxCpu) -> Result<CpuLimits, BundleError> {
    let limits = CpuLimits {
        quota_us: cpu.quota().and_then(limit),
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

/// Files of the task's own cgroup, and of its controllers only: `cgroup.*` steer processes. Their names
/// have capitals and digits too (`hugetlb.2MB.max`), and never a slash.
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
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn update(resources: &Value) -> Result<Resources, BundleError> {
        Resources::of_update(resources.to_string().as_bytes())
    }

    #[test]
    fn an_update_tells_not_given_from_no_limit() {
        let given = update(&json!({
            "memory": {"limit": 64 << 20, "swap": 0},
            "cpu": {"quota": -1, "shares": 512},
            "pids": {"limit": -1},
        }));
        let expected = Resources {
            memory: Some(Limit::At(64 << 20)),
            cpu: CpuLimits {
                quota_us: Some(Limit::Unlimited),
                shares: Some(512),
                ..CpuLimits::default()
            },
            pids: Some(Limit::Unlimited),
            ..Resources::default()
        };
        assert_eq!(given.unwrap(), expected);
        assert_eq!(update(&json!({})).unwrap(), Resources::default());
        let unlimited = update(&json!({"memory": {"limit": -1}})).unwrap();
        assert_eq!(unlimited.memory, Some(Limit::Unlimited));
    }

    #[test]
    fn an_updates_swap_may_stand_alone() {
        let swap = update(&json!({"memory": {"swap": 96 << 20}})).unwrap();
        assert_eq!(swap.memory_swap, Some(Limit::At(96 << 20)));
    }

    #[test]
    fn files_of_a_cgroup_are_named_as_the_kernel_does() {
        let names = [
            "hugetlb.2MB.max",
            "hugetlb.1GB.rsvd.max",
            "io.bfq.weight",
            "memory.high",
        ];
        for name in names {
            let given = update(&json!({"unified": {name: "1"}})).unwrap();
            assert_eq!(given.files[name], "1");
        }
    }

    #[test]
    fn an_update_is_refused_by_field() {
        for (resources, start) in [
            (
                json!({"memory": {"limit": 4096}}),
                "linux.resources.memory.limit = 4096 is refused: too small",
            ),
            (
                json!({"cpu": {"cpus": "all"}}),
                "linux.resources.cpu.cpus = \"all\" is refused: not a list",
            ),
            (
                json!({"unified": {"cgroup.kill": "1"}}),
                "linux.resources.unified.cgroup.kill = \"1\" is refused",
            ),
            (
                json!({"cpu": {"quota": "much"}}),
                "linux.resources is not as the OCI specification has it",
            ),
            (
                json!({"unified": {"hugetlb.2MB/max": "1"}}),
                "linux.resources.unified.hugetlb.2MB/max = \"1\" is refused",
            ),
            (json!([]), "the update: linux.resources = [] is refused: "),
        ] {
            let error = update(&resources).unwrap_err();
            assert!(error.to_string().contains(start), "{error}");
        }
        let long = vec![b' '; UPDATE_BYTES_MAX + 1];
        assert!(Resources::of_update(&long).is_err());
        assert!(Resources::of_update(b"{").is_err());
    }
}

//! From the spec's resources to the files of a cgroup (cgroup-v2.rst, "Controllers";
//! cgroup-v1/memory.rst, cpusets.rst; scheduler/sched-bwc.rst).

use super::directory::Origin;
use super::{Cgroup, CgroupError, Version};
use crate::bundle::{CpuLimits, Limit, Resources};

/// Period of a CPU quota that names none, microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Fewest processes that are allowed: the VMM's own threads live here, the guest's do not.
const PIDS_MIN: u64 = 32;
/// Most processes where the spec has no limit. A VMM has about ten threads; code that breaks out of a guest
/// must not get many more.
const PIDS_DEFAULT: u64 = 64;
/// Range of shares in cgroup v1.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

const MEMORY: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const QUOTA: &str = "linux.resources.cpu.quota";
const PERIOD: &str = "linux.resources.cpu.period";
const PIDS: &str = "linux.resources.pids.limit";

/// A file to write, with the new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub controller: String,
    pub file: String,
    pub value: String,
    /// Path of the field in the spec that asks for the value.
    pub field: String,
    /// Whether the kernel's configuration may lack the file; the limit then has no effect.
    pub optional: bool,
}

fn line(file: &str, value: String, field: &str) -> Line {
    Line {
        controller: file.split('.').next().unwrap_or_default().to_owned(),
        file: file.to_owned(),
        value,
        field: field.to_owned(),
        optional: false,
    }
}

/// Files to write, in an order that the kernel accepts whether values rise or fall.
pub(super) fn lines(resources: &Resources, cgroup: &Cgroup) -> Result<Vec<Line>, CgroupError> {
    let version = |controller| {
        let found = cgroup.of(controller);
        found.map_or(Version::V2, |(_, version)| version)
    };
    let cpu = &resources.cpu;
    let mut lines = match version("memory") {
        Version::V1 => memory_v1(resources, cgroup),
        Version::V2 => memory_v2(resources, cgroup)?,
    };
    match version("cpu") {
        Version::V1 => lines.extend(cpu_v1(cpu, cgroup)),
        Version::V2 => lines.extend(cpu_v2(cpu, cgroup)),
    }
    let lists = [
        ("cpuset.cpus", &cpu.cpus, "linux.resources.cpu.cpus"),
        ("cpuset.mems", &cpu.mems, "linux.resources.cpu.mems"),
    ];
    for (file, list, field) in lists {
        lines.extend(list.iter().map(|list| line(file, list.clone(), field)));
    }
    lines.extend(resources.pids.map(|pids| {
        let value = match pids {
            Limit::Unlimited => "max".to_owned(),
            Limit::At(max) => max.max(PIDS_MIN).to_string(),
        };
        line("pids.max", value, PIDS)
    }));
    lines.extend(resources.files.iter().map(|(name, value)| {
        let field = format!("linux.resources.unified.{name}");
        line(name, value.clone(), &field)
    }));
    Ok(lines)
}

/// Files to write for a new cgroup.
pub(super) fn first_lines(
    resources: &Resources,
    cgroup: &Cgroup,
) -> Result<Vec<Line>, CgroupError> {
    let mut lines = lines(resources, cgroup)?;
    // A joined cgroup has its operator's limit.
    let joined = cgroup
        .of("pids")
        .is_some_and(|(pids, _)| pids.origin == Origin::Joined);
    if resources.pids.is_none() && !resources.files.contains_key("pids.max") && !joined {
        lines.push(Line {
            optional: true,
            ..line("pids.max", PIDS_DEFAULT.to_string(), PIDS)
        });
    }
    Ok(lines)
}

/// Files of version 2's memory. OCI counts memory and swap together, cgroup v2 swap alone.
fn memory_v2(resources: &Resources, cgroup: &Cgroup) -> Result<Vec<Line>, CgroupError> {
    let max = |limit: Limit| limit.at().map_or("max".to_owned(), |at| at.to_string());
    let memory = resources
        .memory
        .map(|limit| line("memory.max", max(limit), MEMORY));
    let swap = match resources.memory_swap {
        None if resources.memory == Some(Limit::Unlimited) => Some("max".to_owned()),
        None => None,
        Some(Limit::Unlimited) => Some("max".to_owned()),
        Some(Limit::At(both)) => {
            let given = resources.memory.and_then(Limit::at);
            let limit = given.or_else(|| number(cgroup, "memory", "memory.max"));
            let refused = |reason| CgroupError::Swap { both, reason };
            let limit = limit.ok_or_else(|| refused("the memory it counts is not limited"))?;
            let alone = both.checked_sub(limit);
            Some(
                alone
                    .ok_or_else(|| refused("it is less than the memory limit, which it counts"))?
                    .to_string(),
            )
        }
    };
    let swap = swap.map(|swap| Line {
        optional: true,
        ..line("memory.swap.max", swap, SWAP)
    });
    Ok(memory.into_iter().chain(swap).collect())
}

/// Files of version 1's memory. `memory.memsw.limit_in_bytes` is never below `memory.limit_in_bytes`, also in
/// between.
fn memory_v1(resources: &Resources, cgroup: &Cgroup) -> Vec<Line> {
    let bytes = |limit: Limit| limit.at().map_or("-1".to_owned(), |at| at.to_string());
    let both = match resources.memory_swap {
        // Otherwise the present limit would prevent the change.
        None if resources.memory == Some(Limit::Unlimited) => Some(Limit::Unlimited),
        given => given,
    };
    let memory = resources
        .memory
        .map(|limit| line("memory.limit_in_bytes", bytes(limit), MEMORY));
    let swap = both.map(|limit| Line {
        optional: true,
        ..line("memory.memsw.limit_in_bytes", bytes(limit), SWAP)
    });
    let present = number(cgroup, "memory", "memory.memsw.limit_in_bytes").unwrap_or(u64::MAX);
    let rises = resources
        .memory
        .is_some_and(|limit| limit.at().unwrap_or(u64::MAX) > present);
    if rises {
        swap.into_iter().chain(memory).collect()
    } else {
        memory.into_iter().chain(swap).collect()
    }
}

/// Files of version 2's CPU. `cpu.max` holds quota and period; one that is not given keeps its value.
fn cpu_v2(cpu: &CpuLimits, cgroup: &Cgroup) -> Vec<Line> {
    let mut lines = Vec::new();
    if cpu.quota_us.is_some() || cpu.period_us.is_some() {
        let present = cgroup.read("cpu", "cpu.max").unwrap_or_default();
        let mut words = present.split_whitespace();
        let quota = words.next().unwrap_or("max").to_owned();
        let period = words.next().and_then(|period| period.parse().ok());
        let quota = cpu.quota_us.map_or(quota, |quota| {
            quota.at().map_or("max".to_owned(), |us| us.to_string())
        });
        let period = cpu.period_us.or(period).unwrap_or(CPU_PERIOD_US);
        let field = if cpu.quota_us.is_some() {
            QUOTA
        } else {
            PERIOD
        };
        lines.push(line("cpu.max", format!("{quota} {period}"), field));
    }
    lines.extend(
        cpu.shares
            .map(|shares| line("cpu.weight", weight(shares), "linux.resources.cpu.shares")),
    );
    lines
}

/// Files of version 1's CPU. A parent's share is never exceeded in between: the period first, unless both fall.
fn cpu_v1(cpu: &CpuLimits, cgroup: &Cgroup) -> Vec<Line> {
    const QUOTA_FILE: &str = "cpu.cfs_quota_us";
    const PERIOD_FILE: &str = "cpu.cfs_period_us";
    let below = |given: Option<u64>, file| {
        given.is_some_and(|us| number(cgroup, "cpu", file).is_none_or(|present| us < present))
    };
    let quota = cpu.quota_us.map(|quota| {
        let value = quota.at().map_or("-1".to_owned(), |us| us.to_string());
        line(QUOTA_FILE, value, QUOTA)
    });
    let period = cpu
        .period_us
        .map(|us| line(PERIOD_FILE, us.to_string(), PERIOD));
    let quota_first =
        below(cpu.period_us, PERIOD_FILE) && below(cpu.quota_us.and_then(Limit::at), QUOTA_FILE);
    let shares = cpu.shares.map(|shares| {
        line(
            "cpu.shares",
            shares.to_string(),
            "linux.resources.cpu.shares",
        )
    });
    let (first, second) = if quota_first {
        (quota, period)
    } else {
        (period, quota)
    };
    [first, second, shares].into_iter().flatten().collect()
}

/// A file's number; `None` for `max`, -1 or a file that does not exist.
fn number(cgroup: &Cgroup, controller: &str, file: &str) -> Option<u64> {
    cgroup.read(controller, file)?.trim().parse().ok()
}

/// The weight, 1 to 10000, for shares, 2 to 262144, as runc has it since 1.3.2: a curve through both ends
/// and through the default of both, 1024 and 100. A line between the ends alone gives a task with the
/// default of version 1 (1024) less than half of what a task without any limit has.
fn weight(shares: u64) -> String {
    let shares = shares.clamp(*SHARES.start(), *SHARES.end());
    let log2 = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let log10 = (log2 * log2 + 125.0 * log2) / 612.0 - 7.0 / 34.0;
    format!("{:.0}", 10_f64.powf(log10).ceil())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    /// A directory with these files, and the cgroup on it.
    fn fake(names: &[&str], files: &[(&str, &str)]) -> (TempDir, Cgroup) {
        let directory = tempdir().unwrap();
        for (name, value) in files {
            std::fs::write(directory.path().join(name), value).unwrap();
        }
        let cgroup = Cgroup::fake(&[(directory.path(), names)]);
        (directory, cgroup)
    }

    fn written(resources: &Resources, cgroup: &Cgroup) -> Vec<(String, String)> {
        let lines = lines(resources, cgroup).unwrap();
        lines
            .into_iter()
            .map(|line| (line.file, line.value))
            .collect()
    }

    fn all() -> Resources {
        Resources {
            memory: Some(Limit::At(64 << 20)),
            memory_swap: Some(Limit::At(96 << 20)),
            cpu: CpuLimits {
                quota_us: Some(Limit::At(50_000)),
                shares: Some(1024),
                cpus: Some("0-1".to_owned()),
                ..CpuLimits::default()
            },
            pids: Some(Limit::At(100)),
            files: [("memory.high".to_owned(), "1".to_owned())].into(),
        }
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = expected.iter();
        pairs
            .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn limits_are_exact_in_version_2() {
        let (_directory, cgroup) = fake(&[], &[("cpu.max", "max 100000\n")]);
        let expected = pairs(&[
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "100"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "100"),
            ("memory.high", "1"),
        ]);
        assert_eq!(written(&all(), &cgroup), expected);
    }

    #[test]
    fn limits_are_exact_in_version_1() {
        let names = ["cpu", "cpuset", "memory", "pids"];
        let (_directory, cgroup) = fake(&names, &[]);
        let expected = pairs(&[
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "100663296"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.shares", "1024"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "100"),
            ("memory.high", "1"),
        ]);
        assert_eq!(written(&all(), &cgroup), expected);
    }

    #[test]
    fn no_limits_write_nothing() {
        for names in [&[][..], &["memory", "cpu"]] {
            let (_directory, cgroup) = fake(names, &[]);
            assert_eq!(written(&Resources::default(), &cgroup), []);
        }
    }

    #[test]
    fn half_of_a_cpu_limit_keeps_the_other_half() {
        let (_directory, cgroup) = fake(&[], &[("cpu.max", "20000 50000\n")]);
        let change = |quota_us, period_us| {
            let cpu = CpuLimits {
                quota_us,
                period_us,
                ..CpuLimits::default()
            };
            let resources = Resources {
                cpu,
                ..Resources::default()
            };
            written(&resources, &cgroup)[0].1.clone()
        };
        assert_eq!(change(Some(Limit::At(30_000)), None), "30000 50000");
        assert_eq!(change(None, Some(100_000)), "20000 100000");
        assert_eq!(change(Some(Limit::Unlimited), None), "max 50000");
    }

    #[test]
    fn version_1_takes_values_that_rise_and_that_fall() {
        let files = [
            ("memory.memsw.limit_in_bytes", "67108864"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.cfs_period_us", "100000"),
        ];
        let (_directory, cgroup) = fake(&["cpu", "memory"], &files);
        let order = |memory, quota, period| {
            let resources = Resources {
                memory: Some(Limit::At(memory)),
                memory_swap: Some(Limit::At(memory)),
                cpu: CpuLimits {
                    quota_us: Some(Limit::At(quota)),
                    period_us: Some(period),
                    ..CpuLimits::default()
                },
                ..Resources::default()
            };
            let files = written(&resources, &cgroup).into_iter();
            let short = |(file, _): (String, String)| file.split('.').nth(1).unwrap().to_owned();
            files.map(short).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            order(128 << 20, 60_000, 200_000),
            "memsw limit_in_bytes cfs_period_us cfs_quota_us"
        );
        assert_eq!(
            order(32 << 20, 10_000, 20_000),
            "limit_in_bytes memsw cfs_quota_us cfs_period_us"
        );
        let unlimited = Resources {
            memory: Some(Limit::Unlimited),
            ..Resources::default()
        };
        let expected = pairs(&[
            ("memory.memsw.limit_in_bytes", "-1"),
            ("memory.limit_in_bytes", "-1"),
        ]);
        assert_eq!(written(&unlimited, &cgroup), expected);
    }

    #[test]
    fn swap_alone_counts_the_present_memory() {
        let resources = Resources {
            memory_swap: Some(Limit::At(96 << 20)),
            ..Resources::default()
        };
        let (_directory, cgroup) = fake(&[], &[("memory.max", "67108864\n")]);
        let expected = pairs(&[("memory.swap.max", "33554432")]);
        assert_eq!(written(&resources, &cgroup), expected);
        for present in ["max\n", "268435456\n"] {
            let (_directory, cgroup) = fake(&[], &[("memory.max", present)]);
            let error = lines(&resources, &cgroup).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("linux.resources.memory.swap = 100663296")
            );
        }
    }

    #[test]
    fn weights_span_the_scale_and_meet_at_the_default() {
        for (shares, expected) in [
            (0, "1"),
            (2, "1"),
            (3, "2"),
            (100, "17"),
            (512, "59"),
            (1024, "100"),
            (2048, "174"),
            (8192, "532"),
            (262_143, "10000"),
            (262_144, "10000"),
            (u64::MAX, "10000"),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let weights = (2..=262_144).map(|shares| weight(shares).parse::<u64>().unwrap());
        let mut last = 1;
        for weight in weights {
            assert!((last..=10_000).contains(&weight), "{weight} after {last}");
            last = weight;
        }
    }

    #[test]
    fn the_vmms_threads_fit() {
        let (_directory, cgroup) = fake(&[], &[]);
        for (pids, value) in [(Limit::At(1), "32"), (Limit::Unlimited, "max")] {
            let resources = Resources {
                pids: Some(pids),
                ..Resources::default()
            };
            assert_eq!(written(&resources, &cgroup)[0].1, value);
        }
    }
}

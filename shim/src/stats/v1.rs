//! `io.containerd.cgroups.v1.Metrics` (containerd/cgroups, `cgroup1/stats/metrics.proto`) from the files
//! of the kernel's `admin-guide/cgroup-v1`.

use protobuf::MessageField;
use wasmvm_protocol::agent::containerd::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, CgroupStats, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaStat, Throttle,
};

use super::text::{Keyed, count, device, number};
use crate::cgroup::Cgroup;

/// Nanoseconds of a tick, in which `cpuacct.stat` counts: `USER_HZ` is 100 on x86-64.
const NS_PER_TICK: u64 = 10_000_000;
/// Most lines of one file that are reported.
const ENTRIES_MAX: usize = 4096;

pub(super) fn read(cgroup: &Cgroup) -> Metrics {
    let oom = Keyed::read(cgroup, "memory", "memory.oom_control");
    let limit = number(cgroup, "pids", "pids.max");
    Metrics {
        pids: MessageField::some(PidsStat {
            current: number(cgroup, "pids", "pids.current"),
            // Here 0 is "no limit".
            limit: if limit == u64::MAX { 0 } else { limit },
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(cgroup)),
        memory: MessageField::some(memory(cgroup)),
        blkio: MessageField::some(BlkIOStat {
            io_service_bytes_recursive: io(cgroup, "blkio.throttle.io_service_bytes_recursive"),
            io_serviced_recursive: io(cgroup, "blkio.throttle.io_serviced_recursive"),
            ..Default::default()
        }),
        rdma: MessageField::some(RdmaStat::default()),
        cgroup_stats: MessageField::some(CgroupStats::default()),
        memory_oom_control: MessageField::some(MemoryOomControl {
            oom_kill_disable: oom.get("oom_kill_disable"),
            under_oom: oom.get("under_oom"),
            oom_kill: oom.get("oom_kill"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cpu(cgroup: &Cgroup) -> CPUStat {
    let ticks = Keyed::read(cgroup, "cpuacct", "cpuacct.stat");
    let per_cpu = cgroup.read("cpuacct", "cpuacct.usage_percpu");
    let throttling = Keyed::read(cgroup, "cpu", "cpu.stat");
    CPUStat {
        usage: MessageField::some(CPUUsage {
            total: number(cgroup, "cpuacct", "cpuacct.usage"),
            kernel: ticks.get("system").saturating_mul(NS_PER_TICK),
            user: ticks.get("user").saturating_mul(NS_PER_TICK),
            per_cpu: per_cpu
                .unwrap_or_default()
                .split_whitespace()
                .take(ENTRIES_MAX)
                .map(count)
                .collect(),
            ..Default::default()
        }),
        throttling: MessageField::some(Throttle {
            periods: throttling.get("nr_periods"),
            throttled_periods: throttling.get("nr_throttled"),
            throttled_time: throttling.get("throttled_time"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(cgroup: &Cgroup) -> MemoryStat {
    let stat = Keyed::read(cgroup, "memory", "memory.stat");
    MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry(cgroup, "memory"),
        swap: entry(cgroup, "memory.memsw"),
        kernel: entry(cgroup, "memory.kmem"),
        kernel_tcp: entry(cgroup, "memory.kmem.tcp"),
        ..Default::default()
    }
}

fn entry(cgroup: &Cgroup, prefix: &str) -> MessageField<MemoryEntry> {
    let read = |name| number(cgroup, "memory", &format!("{prefix}.{name}"));
    MessageField::some(MemoryEntry {
        limit: read("limit_in_bytes"),
        usage: read("usage_in_bytes"),
        max: read("max_usage_in_bytes"),
        failcnt: read("failcnt"),
        ..Default::default()
    })
}

/// Reads lines such as `8:0 Read 4096`; the last line is a total without a device.
fn io(cgroup: &Cgroup, file: &str) -> Vec<BlkIOEntry> {
    let text = cgroup.read("blkio", file).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = device(words.next()?)?;
        Some(BlkIOEntry {
            major,
            minor,
            op: words.next()?.to_owned(),
            value: words.next().map(count)?,
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).take(ENTRIES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    const NAMES: [&str; 5] = ["blkio", "cpu", "cpuacct", "memory", "pids"];

    #[test]
    fn the_files_of_a_cgroup_become_metrics() {
        let directory = tempdir().unwrap();
        for (file, text) in [
            ("cpuacct.usage", "5000000000\n"),
            ("cpuacct.stat", "user 300\nsystem 200\n"),
            ("cpuacct.usage_percpu", "1 2 \n"),
            (
                "cpu.stat",
                "nr_periods 4\nnr_throttled 3\nthrottled_time 2\n",
            ),
            (
                "memory.stat",
                "rss 4096\ntotal_inactive_file 7\nhierarchical_memsw_limit 9\n",
            ),
            ("memory.usage_in_bytes", "8192\n"),
            ("memory.limit_in_bytes", "67108864\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            ),
            ("pids.max", "max\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 4096\n8:0 Write 1\nTotal 4097\n",
            ),
        ] {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let metrics = read(&Cgroup::fake(&[(directory.path(), &NAMES)]));
        let usage = &metrics.cpu.usage;
        assert_eq!((usage.total, usage.user), (5_000_000_000, 3_000_000_000));
        assert_eq!(usage.per_cpu, [1, 2]);
        assert_eq!(metrics.cpu.throttling.throttled_time, 2);
        let memory = &metrics.memory;
        assert_eq!((memory.usage.usage, memory.usage.limit), (8192, 67_108_864));
        assert_eq!((memory.rss, memory.total_inactive_file), (4096, 7));
        assert_eq!(memory.hierarchical_swap_limit, 9);
        assert_eq!(metrics.memory_oom_control.oom_kill, 1);
        assert_eq!(metrics.pids.limit, 0, "none");
        let [read, write] = &metrics.blkio.io_service_bytes_recursive[..] else {
            panic!("{:?}", metrics.blkio)
        };
        assert_eq!((read.op.as_str(), read.value), ("Read", 4096));
        assert_eq!((write.major, write.value), (8, 1));
    }

    #[test]
    fn no_section_is_left_out() {
        let directory = tempdir().unwrap();
        let metrics = read(&Cgroup::fake(&[(directory.path(), &NAMES)]));
        assert!(metrics.cpu.usage.is_some() && metrics.cpu.throttling.is_some());
        let memory = &metrics.memory;
        assert!(memory.usage.is_some() && memory.swap.is_some());
        assert!(memory.kernel.is_some() && memory.kernel_tcp.is_some());
        assert!(metrics.pids.is_some() && metrics.blkio.is_some() && metrics.rdma.is_some());
        assert!(metrics.cgroup_stats.is_some() && metrics.memory_oom_control.is_some());
    }
}

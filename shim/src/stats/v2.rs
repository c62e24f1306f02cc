//! `io.containerd.cgroups.v2.Metrics` (containerd/cgroups, `cgroup2/stats/metrics.proto`) from the files
//! of cgroup-v2.rst.

use protobuf::MessageField;
use wasmvm_protocol::agent::containerd::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
    RdmaStat,
};

use super::text::{Keyed, count, device, number};
use crate::cgroup::Cgroup;

/// Most devices that are reported.
const DEVICES_MAX: usize = 1024;

pub(super) fn read(cgroup: &Cgroup) -> Metrics {
    Metrics {
        pids: MessageField::some(PidsStat {
            current: number(cgroup, "pids", "pids.current"),
            limit: number(cgroup, "pids", "pids.max"),
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(cgroup)),
        memory: MessageField::some(memory(cgroup)),
        rdma: MessageField::some(RdmaStat::default()),
        io: MessageField::some(IOStat {
            usage: io(cgroup),
            psi: pressure(cgroup, "io", "io.pressure"),
            ..Default::default()
        }),
        memory_events: MessageField::some(events(cgroup)),
        ..Default::default()
    }
}

fn cpu(cgroup: &Cgroup) -> CPUStat {
    let stat = Keyed::read(cgroup, "cpu", "cpu.stat");
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(cgroup, "cpu", "cpu.pressure"),
        ..Default::default()
    }
}

fn memory(cgroup: &Cgroup) -> MemoryStat {
    let stat = Keyed::read(cgroup, "memory", "memory.stat");
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        // Split in two since Linux 5.9; the message has one.
        workingset_refault: stat.get("workingset_refault")
            + stat.get("workingset_refault_anon")
            + stat.get("workingset_refault_file"),
        workingset_activate: stat.get("workingset_activate")
            + stat.get("workingset_activate_anon")
            + stat.get("workingset_activate_file"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: number(cgroup, "memory", "memory.current"),
        usage_limit: number(cgroup, "memory", "memory.max"),
        max_usage: number(cgroup, "memory", "memory.peak"),
        swap_usage: number(cgroup, "memory", "memory.swap.current"),
        swap_limit: number(cgroup, "memory", "memory.swap.max"),
        swap_max_usage: number(cgroup, "memory", "memory.swap.peak"),
        psi: pressure(cgroup, "memory", "memory.pressure"),
        ..Default::default()
    }
}

fn events(cgroup: &Cgroup) -> MemoryEvents {
    let events = Keyed::read(cgroup, "memory", "memory.events");
    MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..Default::default()
    }
}

/// Reads lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(cgroup: &Cgroup) -> Vec<IOEntry> {
    let text = cgroup.read("io", "io.stat").unwrap_or_default();
    let entry = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let (major, minor) = device(name)?;
        let value = |key| {
            let mut pairs = rest.split(' ').filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(name, _)| *name == key);
            found.map_or(0, |(_, value)| count(value))
        };
        Some(IOEntry {
            major,
            minor,
            rbytes: value("rbytes"),
            wbytes: value("wbytes"),
            rios: value("rios"),
            wios: value("wios"),
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).take(DEVICES_MAX).collect()
}

/// Reads lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full` (accounting/psi.rst). None where
/// the kernel accounts no pressure: zeros would say that there is none.
fn pressure(cgroup: &Cgroup, controller: &str, file: &str) -> MessageField<PSIStats> {
    let Some(text) = cgroup.read(controller, file) else {
        return MessageField::none();
    };
    let data = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind));
        let value = |key| {
            let mut pairs = line.into_iter().flat_map(|line| line.split(' '));
            pairs.find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
        };
        let average = |key| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        MessageField::some(PSIData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: value("total").map_or(0, count),
            ..Default::default()
        })
    };
    MessageField::some(PSIStats {
        some: data("some"),
        full: data("full"),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn the_files_of_a_cgroup_become_metrics() {
        let directory = tempdir().unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            (
                "memory.stat",
                "anon 4096\ninactive_file 1\nworkingset_refault_anon 2\n",
            ),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "9000\n"),
            ("memory.events", "low 0\nmax 3\noom 1\noom_kill 1\n"),
            ("pids.current", "7\n"),
            ("pids.max", "64\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\nodd\n",
            ),
        ] {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let metrics = read(&Cgroup::fake(&[(directory.path(), &[])]));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (30, 20));
        let some = &metrics.cpu.psi.some;
        assert!((some.avg10 - 1.5).abs() < f64::EPSILON && some.total == 9);
        assert!(metrics.memory.psi.is_none(), "the kernel has no such file");
        let memory = &metrics.memory;
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.max_usage),
            (8192, u64::MAX, 9000)
        );
        assert_eq!((memory.anon, memory.workingset_refault), (4096, 2));
        assert_eq!(
            (metrics.memory_events.max, metrics.memory_events.oom_kill),
            (3, 1)
        );
        assert_eq!((metrics.pids.current, metrics.pids.limit), (7, 64));
        let [disk] = &metrics.io.usage[..] else {
            panic!("{:?}", metrics.io)
        };
        assert_eq!((disk.major, disk.wbytes, disk.wios), (8, 2, 4));
    }

    #[test]
    fn no_section_is_left_out() {
        let directory = tempdir().unwrap();
        let metrics = read(&Cgroup::fake(&[(directory.path(), &[])]));
        assert!(metrics.pids.is_some() && metrics.cpu.is_some() && metrics.memory.is_some());
        assert!(metrics.rdma.is_some() && metrics.io.is_some() && metrics.memory_events.is_some());
    }
}

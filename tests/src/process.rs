//! Processes of this host, as `/proc` shows them.

use std::fs;

/// The processes of this program, named as `/proc/PID/comm` has it (15 bytes).
#[must_use]
pub fn named(program: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim_end() == program
        })
        .collect()
}

/// The parent: for a task's pid, which is its VMM's, the shim's daemon.
///
/// # Panics
/// When there is no such process.
#[must_use]
#[track_caller]
pub fn parent_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a stat line");
    let parent = rest.split_ascii_whitespace().nth(1);
    parent.and_then(|pid| pid.parse().ok()).expect("a parent")
}

/// The most memory that a process has ever had resident, KiB; `None` when there is no such process.
#[must_use]
pub fn peak_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

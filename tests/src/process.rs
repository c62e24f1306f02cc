//! Processes of this host, as `/proc` shows them.

use std::fs;

/// `/proc/PID/comm` of a file server.
pub const FILE_SERVER: &str = "wasmvm-files";

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
    find_parent(pid).expect("a process")
}

fn find_parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process that opens the files of the VMM with this pid.
///
/// # Panics
/// When there is none.
#[must_use]
#[track_caller]
pub fn file_server_of(vmm: u32) -> u32 {
    let servers = named(FILE_SERVER);
    let is_its = |pid: &u32| find_parent(*pid) == Some(vmm);
    servers.into_iter().find(is_its).expect("a file server")
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

//! Writes limits into a cgroup: all of a change or none of it.
//!
//! A memory limit below the VM's usage is the dangerous change: version 2 OOM-kills the VM when the kernel cannot
//! reclaim enough. So `memory.high` is written first, under which the kernel reclaims and slows but never
//! kills; the limit follows only when the usage has come below it. Version 1 refuses by itself (EBUSY).

use std::io;

use super::directory::Directory;
use super::host::{Kind, Version};
use super::limits::{Line, lines};
use super::{Cgroup, CgroupError};
use crate::bundle::Resources;
use crate::journal::Step;

impl Cgroup {
    /// Changes the limits of a running VM: all of them, or none.
    ///
    /// # Errors
    /// [`CgroupError`] for the first limit that cannot be held.
    pub(crate) fn change(&self, resources: &Resources) -> Result<(), CgroupError> {
        // Former values of the files, in the order of writing.
        let mut written = Vec::new();
        for line in lines(resources, self)? {
            match write(self, &line) {
                Ok(Some(before)) => written.push(Line {
                    value: before,
                    ..line
                }),
                Ok(None) => {}
                Err(error) => {
                    self.undo(&written);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Puts the former values back.
    fn undo(&self, written: &[Line]) {
        for line in written.iter().rev() {
            if let Err(error) = write(self, line) {
                tracing::error!(
                    file = line.file,
                    error = crate::error::chain(&error),
                    "cannot put a limit back"
                );
            }
        }
    }
}

/// Writes one file; returns its former value. `None` when an optional file does not exist.
pub(super) fn write(cgroup: &Cgroup, line: &Line) -> Result<Option<String>, CgroupError> {
    let Some((directory, version)) = place(cgroup, line) else {
        return if line.optional {
            Ok(None)
        } else {
            Err(no_controller(cgroup, line))
        };
    };
    let before = match directory.read(&line.file) {
        Ok(before) => before.trim().to_owned(),
        Err(err) if err.kind() == io::ErrorKind::NotFound && line.optional => {
            tracing::debug!(line.file, "the kernel has no such limit; it has no effect");
            return Ok(None);
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound && !has(directory, &line.controller) => {
            return Err(no_controller(cgroup, line));
        }
        // Some files can only be written.
        Err(_) => String::new(),
    };
    keep(cgroup, directory, &line.file, &to_come_back(line, &before))?;
    if version == Version::V2 && line.file == "memory.max" {
        reclaim_below(cgroup, directory, line)?;
    }
    put(directory, line)?;
    Ok(Some(before))
}

/// Records the value of a joined directory's file in the journal, before the file is changed for the first time.
pub(super) fn keep(
    cgroup: &Cgroup,
    directory: &Directory,
    file: &str,
    value: &str,
) -> Result<(), CgroupError> {
    if let Some(journal) = &cgroup.journal
        && directory.is_to_be_kept(file)
    {
        journal.record(&Step::CgroupLimit {
            directory: directory.identity()?,
            file: file.to_owned(),
            value: value.to_owned(),
        })?;
    }
    Ok(())
}

/// The value that brings `before` back. A file of io has a line for each device that has a limit
/// (cgroup-v2.rst, "IO Interface Files"): a device that had none needs a line that says so.
fn to_come_back(line: &Line, before: &str) -> String {
    let none = match line.file.as_str() {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "io.latency" => "target=max",
        "io.weight" => "default",
        _ => return before.to_owned(),
    };
    let key = |line: &str| {
        line.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let new = line.value.lines().map(key);
    let new =
        new.filter(|key| key.contains(':') && !before.lines().any(|old| old.starts_with(key)));
    let unlimited = new.map(|key| format!("{key} {none}"));
    let all = before.lines().map(ToOwned::to_owned).chain(unlimited);
    all.collect::<Vec<_>>().join("\n")
}

fn put(directory: &Directory, line: &Line) -> Result<(), CgroupError> {
    directory.write(&line.file, &line.value).map_err(|source| {
        let used = directory.read("memory.usage_in_bytes").ok();
        let used = used.and_then(|used| used.trim().parse().ok());
        match (used, line.value.parse()) {
            (Some(used_bytes), Ok(limit_bytes))
                if line.file == "memory.limit_in_bytes"
                    && source.kind() == io::ErrorKind::ResourceBusy =>
            {
                CgroupError::MemoryHeld {
                    limit_bytes,
                    used_bytes,
                }
            }
            _ => CgroupError::Refused {
                field: line.field.clone(),
                value: line.value.clone(),
                file: directory.path.join(&line.file),
                source,
            },
        }
    })
}

/// Makes the usage of a cgroup come below a limit that is going to be set, without an OOM-kill.
fn reclaim_below(cgroup: &Cgroup, directory: &Directory, line: &Line) -> Result<(), CgroupError> {
    const HIGH: &str = "memory.high";
    let used = || directory.read("memory.current").ok()?.trim().parse().ok();
    let Ok(limit) = line.value.parse::<u64>() else {
        return Ok(());
    };
    if used().is_none_or(|used: u64| used <= limit) {
        return Ok(());
    }
    let high = directory.read(HIGH).unwrap_or_else(|_| "max".to_owned());
    keep(cgroup, directory, HIGH, high.trim())?;
    // Returns when nothing more can be reclaimed, or when the usage is below.
    let pressed = directory.write(HIGH, &line.value);
    let held = used().filter(|used| *used > limit);
    let put = if held.is_some() {
        Ok(())
    } else {
        put(directory, line)
    };
    if let Err(error) = pressed.and(directory.write(HIGH, high.trim())) {
        tracing::warn!(%error, "cannot steer memory.high");
    }
    match held {
        Some(used_bytes) => Err(CgroupError::MemoryHeld {
            limit_bytes: limit,
            used_bytes,
        }),
        None => put,
    }
}

/// The directory for a line. Files of `linux.resources.unified` are version 2's, whatever hierarchy has the
/// controller.
fn place<'a>(cgroup: &'a Cgroup, line: &Line) -> Option<(&'a Directory, Version)> {
    let found = cgroup.of(&line.controller);
    let unified_only = line.field.starts_with("linux.resources.unified");
    found.filter(|(_, version)| !unified_only || *version == Version::V2)
}

fn has(directory: &Directory, controller: &str) -> bool {
    match &directory.kind {
        Kind::Legacy(_) => true,
        Kind::Unified => directory
            .read("cgroup.controllers")
            .is_ok_and(|list| list.split_whitespace().any(|name| name == controller)),
    }
}

fn no_controller(cgroup: &Cgroup, line: &Line) -> CgroupError {
    let unified = cgroup.directories.iter().find(|d| d.kind == Kind::Unified);
    let directory = unified.or(cgroup.directories.first());
    CgroupError::Controller {
        field: line.field.clone(),
        value: line.value.clone(),
        controller: line.controller.clone(),
        path: directory.map(|d| d.path.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{CpuLimits, Limit};
    use std::fs;
    use tempfile::tempdir;

    #[test]
    fn a_change_that_fails_half_way_leaves_the_old_values() {
        let directory = tempdir().unwrap();
        let put = |file: &str, value| fs::write(directory.path().join(file), value).unwrap();
        let got = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
        put("memory.max", "33554432\n");
        put("memory.current", "1\n");
        put("cpu.weight", "100\n");
        put("cgroup.controllers", "memory cpu\n");
        let cgroup = Cgroup::fake(&[(directory.path(), &[])]);
        let change = Resources {
            memory: Some(Limit::At(64 << 20)),
            cpu: CpuLimits {
                shares: Some(2),
                ..CpuLimits::default()
            },
            ..Resources::default()
        };
        cgroup.change(&change).unwrap();
        assert_eq!(
            (got("memory.max"), got("cpu.weight")),
            ("67108864".into(), "1".into())
        );
        let change = Resources {
            memory: Some(Limit::At(32 << 20)),
            pids: Some(Limit::At(100)),
            ..change
        };
        let error = cgroup.change(&change).unwrap_err();
        let start = "linux.resources.pids.limit = 100 cannot be held: the controller pids is not";
        assert!(error.to_string().starts_with(start), "{error}");
        assert_eq!(
            (got("memory.max"), got("cpu.weight")),
            ("67108864".into(), "1".into())
        );
    }

    #[test]
    fn a_limit_below_what_is_held_is_refused_and_the_pressure_taken_off() {
        let directory = tempdir().unwrap();
        let put = |file: &str, value| fs::write(directory.path().join(file), value).unwrap();
        let got = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
        put("memory.max", "max");
        put("memory.high", "max\n");
        put("memory.current", "50000000\n");
        let cgroup = Cgroup::fake(&[(directory.path(), &[])]);
        let change = Resources {
            memory: Some(Limit::At(32 << 20)),
            ..Resources::default()
        };
        let error = cgroup.change(&change).unwrap_err();
        let expected =
            "linux.resources.memory.limit = 33554432 is refused: the VM holds 50000000 bytes";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(
            (got("memory.max"), got("memory.high")),
            ("max".into(), "max".into())
        );
    }

    #[test]
    fn version_1_has_no_unified_files() {
        let directory = tempdir().unwrap();
        fs::write(directory.path().join("memory.high"), "max").unwrap();
        let cgroup = Cgroup::fake(&[(directory.path(), &["memory"])]);
        let change = Resources {
            files: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        let error = cgroup.change(&change).unwrap_err();
        let start = "linux.resources.unified.memory.high = 1 cannot be held";
        assert!(error.to_string().starts_with(start), "{error}");
    }
}

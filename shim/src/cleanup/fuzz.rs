//! What is undone by a journal that anybody may have written.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use arbitrary::{Result, Unstructured};

use super::*;
use crate::host_process::start_time;
use crate::journal::DirectoryIdentity;

/// What lies in the directory, none of it a cgroup's.
const PLACES: [&str; 7] = [
    "",
    "empty",
    "full",
    "full/inner",
    "full/../empty",
    "link",
    "none",
];
const FILES: [&str; 5] = [
    "memory.max",
    "cgroup.kill",
    "../memory.max",
    "inner/../memory.max",
    "none",
];
/// Most steps of one journal.
const STEPS_MAX: usize = 16;

/// By a journal of any bytes no directory or file is touched that is no cgroup's, and no process that is
/// not the one which the journal tells by its start; whatever fails, the rest is undone in time.
pub fn undo(input: &[u8]) {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("empty")).unwrap();
    fs::create_dir_all(host.path().join("full/inner")).unwrap();
    for file in ["memory.max", "full/memory.max", "full/cgroup.kill"] {
        fs::write(host.path().join(file), "nobody's").unwrap();
    }
    std::os::unix::fs::symlink("full", host.path().join("link")).unwrap();
    let root = tempfile::tempdir().unwrap();
    drop(Journal::create(root.path(), "default", "web", Path::new("/run/b/web"), None).unwrap());
    let path = root.path().join("default/web/journal");
    let text = text(&mut Unstructured::new(input), host.path());
    fs::write(&path, &text).unwrap();
    fs::write(path.with_file_name("journal-1"), &text).unwrap();

    let steps = journal::read(root.path(), "default", "web")
        .unwrap()
        .unwrap();
    if !steps.iter().all(|step| is_harmless(step, host.path())) {
        return;
    }
    let (before, started) = (tree(host.path()), Instant::now());
    // Not `undo`, which would go on to run the hooks that the journal names.
    let outcome = release(root.path(), "default", "web");
    assert!(started.elapsed() < UNDO_MAX + KILL_MAX);
    assert_eq!(tree(host.path()), before, "{steps:?}");
    if let Ok(Outcome { pid, exit }) = outcome {
        let vmm = |step: &Step| matches!(step, Step::Vmm { pid: of, .. } if *of == pid);
        assert!(pid == 0 || steps.iter().any(vmm));
        let ended = |step: &Step| matches!(step, Step::Exit(of) if *of == exit);
        assert!(exit.status == STATUS_KILLED || steps.iter().any(ended));
        let parts = journal::parts(root.path(), "default", "web").unwrap();
        assert!(parts.is_empty(), "a part is left and nobody is told");
    }
}

/// What may be tried here for real: a line of any bytes could name a cgroup of this host, or a process by
/// its true start.
fn is_harmless(step: &Step, host: &Path) -> bool {
    let paths: Vec<&Path> = match step {
        Step::Cgroup { path } => vec![path],
        Step::CgroupWanted { paths } => paths.iter().map(PathBuf::as_path).collect(),
        Step::CgroupHeld { made, .. } => made.iter().map(|made| made.path.as_path()).collect(),
        Step::CgroupLimit { directory, .. } => vec![&directory.path],
        Step::Vmm {
            pid,
            start_time: at,
        } => return start_time(*pid).ok() != Some(*at),
        _ => Vec::new(),
    };
    paths.iter().all(|path| path.starts_with(host))
}

/// Every file below, with its content.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            all.extend(tree(&path));
        }
        all.insert(path.clone(), fs::read(&path).ok());
    }
    all
}

/// Steps of a journal, one a line, and lines that are none.
fn text(u: &mut Unstructured<'_>, host: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..STEPS_MAX {
        if u.is_empty() {
            break;
        }
        match step(u, host) {
            Ok(Some(step)) => text.extend(serde_json::to_vec(&step).unwrap()),
            _ => text.extend_from_slice(u.arbitrary().unwrap_or_default()),
        }
        text.push(b'\n');
    }
    text
}

fn step(u: &mut Unstructured<'_>, host: &Path) -> Result<Option<Step>> {
    Ok(Some(match u.int_in_range(0..=8)? {
        0 => Step::Cgroup {
            path: place(u, host)?,
        },
        1 => Step::CgroupWanted {
            paths: vec![place(u, host)?, place(u, host)?],
        },
        2 | 3 => Step::CgroupHeld {
            made: vec![identity(u, host)?],
            joined: vec![identity(u, host)?],
        },
        4 | 5 => Step::CgroupLimit {
            directory: identity(u, host)?,
            file: (*u.choose(&FILES)?).to_owned(),
            value: u.arbitrary()?,
        },
        6 => Step::Vmm {
            // Of this process itself, whose start is another.
            pid: if u.arbitrary()? {
                std::process::id()
            } else {
                u.arbitrary()?
            },
            start_time: u.arbitrary()?,
        },
        7 if u.arbitrary()? => Step::Released,
        7 => Step::Exit(ExitRecord {
            status: u.arbitrary()?,
            exited_at_ns: u.arbitrary()?,
        }),
        _ => return Ok(None),
    }))
}

fn identity(u: &mut Unstructured<'_>, host: &Path) -> Result<DirectoryIdentity> {
    let path = place(u, host)?;
    let inode = fs::metadata(&path).map_or(0, |found| found.ino());
    let inode = if u.ratio(1, 4)? {
        u.arbitrary()?
    } else {
        inode
    };
    Ok(DirectoryIdentity { path, inode })
}

fn place(u: &mut Unstructured<'_>, host: &Path) -> Result<PathBuf> {
    Ok(host.join(u.choose(&PLACES)?))
}

//! Paths inside a tree whose owner changes it at the same time.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary::{Result, Unstructured};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};

use super::open_inside;
use super::point::{PointKind, ensure};

const PARTS: [&str; 8] = ["a", "b", "..", ".", "link", "up", "new", "/"];

/// Whatever is renamed and swapped meanwhile, what is opened or made lies inside the tree, and each look
/// ends.
pub fn tree_race(input: &[u8]) {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("tree");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir(base.path().join("outside")).unwrap();
    fs::write(root.join("a/b/new"), "").unwrap();
    symlink("../../../outside", root.join("a/link")).unwrap();
    symlink("/", root.join("up")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let tenant = std::thread::spawn({
        let (root, over) = (root.clone(), Arc::clone(&over));
        move || change(&root, &over)
    });
    let _used_up = look(&mut Unstructured::new(input), &root);
    over.store(true, Ordering::Relaxed);
    tenant.join().unwrap();
    assert_eq!(
        fs::read_dir(base.path().join("outside")).unwrap().count(),
        0
    );
}

/// Renames without end: directories, and a directory with a symlink.
fn change(root: &Path, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let _gone = fs::rename(root.join("a/b"), root.join("b"));
        let _gone = renameat_with(
            CWD,
            root.join("a"),
            CWD,
            root.join("up"),
            RenameFlags::EXCHANGE,
        );
        let _gone = fs::rename(root.join("b"), root.join("a/b"));
    }
}

fn look(u: &mut Unstructured<'_>, root: &Path) -> Result<()> {
    let top = open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..8 {
        let mut path = PathBuf::from("/");
        for _ in 0..u.int_in_range(1..=6)? {
            let part = *u.choose(&PARTS)?;
            path = PathBuf::from(format!("{}/{part}", path.display()));
        }
        let kind = if u.arbitrary()? {
            PointKind::Directory
        } else {
            PointKind::File
        };
        let found = [
            open_inside(top.as_fd(), &path, OFlags::PATH).ok(),
            ensure(top.as_fd(), &path, kind).ok(),
        ];
        for found in found.into_iter().flatten() {
            let lies = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
            assert!(
                lies.starts_with(root),
                "{} led to {}",
                path.display(),
                lies.display()
            );
        }
    }
    Ok(())
}

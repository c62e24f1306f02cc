//! Journals that were cut off, changed or written by nobody.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use super::*;

/// Any bytes are a list of steps or an error; a step that is recorded behind them is read as the last,
/// unless the journal had its full length.
pub fn journal(input: &[u8]) {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(root.path(), "default", "web");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("journal");
    fs::write(&path, input).unwrap();
    let Ok(before) = read(root.path(), "default", "web") else {
        return;
    };
    let before = before.unwrap();
    // As a step that is recorded is: on a line of its own, even behind one that was cut off.
    fs::write(&path, [input, b"\n"].concat()).unwrap();
    append(root.path(), "default", "web", &Step::Released).unwrap();
    let after = read(root.path(), "default", "web").unwrap().unwrap();
    assert_eq!(after.last(), Some(&Step::Released));
    assert!(after.starts_with(&before), "an earlier step is gone");
    forget(root.path(), "default", "web").unwrap();
    assert!(!directory.exists());
}

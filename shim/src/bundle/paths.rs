//! Paths inside the tree, as the spec gives them.

use std::path::{Component, Path, PathBuf};

/// An absolute path without `.`, `..` and doubled slashes, by its text alone, as runc cleans them: relative
/// paths start at the root, and nothing lies above the root.
#[must_use]
pub(crate) fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_taken_out_and_nothing_is_above_the_root() {
        for (given, expected) in [
            ("/tmp/../tmp", "/tmp"),
            ("/mnt/../data", "/data"),
            ("/a/./b//c/", "/a/b/c"),
            ("/../../etc", "/etc"),
            ("../x", "/x"),
            ("/..", "/"),
        ] {
            assert_eq!(cleaned(Path::new(given)), Path::new(expected), "{given}");
        }
    }
}

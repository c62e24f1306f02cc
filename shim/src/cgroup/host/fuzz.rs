//! Where a task's cgroups lie.

use std::path::Component;

use super::*;

/// Below each root that was found, and nowhere else.
pub(crate) fn hierarchies(mountinfo: &[u8], inner: &Path) {
    if let Ok(hierarchies) = Hierarchies::parse(mountinfo) {
        let place = hierarchies.place(inner);
        let roots = hierarchies
            .0
            .iter()
            .map(|hierarchy| hierarchy.root.as_path());
        for (path, root) in place.paths().zip(roots) {
            assert!(path.starts_with(root) && path.ends_with(inner));
        }
    }
}

/// A relative path of names.
pub(crate) fn stays_below(path: &Path) {
    assert!(!path.as_os_str().is_empty() && path.is_relative());
    let names = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    assert!(
        names && !path.as_os_str().as_encoded_bytes().contains(&0),
        "{path:?}"
    );
}

//! The containers of a pod: a file for each, `/run/wasmvm/tasks/<namespace>/<pod>/containers/<id>`, made before the
//! container's journal and removed after it. So whoever undoes a pod finds them without reading the journals of the host.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{
    CREATE_TRIES_MAX, JournalError, directory, is_of_removed_directory, make_directories,
    state_error, tidy,
};

/// Name of the directory with the files, in that of the pod's sandbox.
const CONTAINERS: &str = "containers";

fn containers(root: &Path, namespace: &str, pod: &str) -> PathBuf {
    directory(root, namespace, pod).join(CONTAINERS)
}

/// Enters a container of a pod. Another container of the pod may be leaving meanwhile, and remove directories.
///
/// # Errors
/// [`JournalError::State`].
pub(super) fn enter(root: &Path, namespace: &str, pod: &str, id: &str) -> Result<(), JournalError> {
    let containers = containers(root, namespace, pod);
    let file = containers.join(id);
    let mut tries = 1;
    loop {
        let entered = make_directories(&containers).and_then(|()| File::create(&file));
        match entered {
            Ok(_) => return Ok(()),
            Err(err) if is_of_removed_directory(&err) && tries < CREATE_TRIES_MAX => tries += 1,
            Err(source) => return Err(state_error("create", &file, source)),
        }
    }
}

/// Removes a container of a pod, once nothing of the container is left, and the pod's directory with the last of them.
pub(crate) fn leave(root: &Path, namespace: &str, pod: &str, id: &str) {
    let containers = containers(root, namespace, pod);
    // What is left of them the pod's own `delete` finds.
    let _ = fs::remove_file(containers.join(id));
    let _ = fs::remove_dir(containers);
    tidy(root, namespace, pod);
}

/// The ids of a pod's containers that may have left something; none for a task that is no pod's sandbox.
///
/// # Errors
/// [`JournalError::State`].
pub(crate) fn containers_of(
    root: &Path,
    namespace: &str,
    pod: &str,
) -> Result<Vec<String>, JournalError> {
    let containers = containers(root, namespace, pod);
    let entries = match fs::read_dir(&containers) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(state_error("list", &containers, source)),
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn the_last_container_takes_the_directories_along() {
        let root = tempdir().unwrap();
        let of = || containers_of(root.path(), "k8s.io", "pod").unwrap();
        assert_eq!(of(), Vec::<String>::new());
        for id in ["a", "b", "a"] {
            enter(root.path(), "k8s.io", "pod", id).unwrap();
        }
        let mut both = of();
        both.sort();
        assert_eq!(both, ["a", "b"]);
        leave(root.path(), "k8s.io", "pod", "a");
        leave(root.path(), "k8s.io", "pod", "c");
        assert_eq!(of(), ["b"]);
        leave(root.path(), "k8s.io", "pod", "b");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn those_who_enter_and_leave_at_once_do_not_disturb_each_other() {
        let root = tempdir().unwrap();
        std::thread::scope(|scope| {
            for id in ["a", "b", "c"] {
                let root = root.path();
                scope.spawn(move || {
                    for _ in 0..200 {
                        enter(root, "k8s.io", "pod", id).unwrap();
                        let there = containers_of(root, "k8s.io", "pod").unwrap();
                        assert!(there.iter().any(|there| there == id), "{id} in {there:?}");
                        leave(root, "k8s.io", "pod", id);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

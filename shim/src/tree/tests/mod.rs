//! Trees of real mounts, each in a mount namespace that ends with its thread.

mod masks;
mod mounts;
mod root;

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags};
use tempfile::TempDir;

use super::TreeError;
use super::assemble::AssembledTree;
use crate::bundle::TaskSpec;
use crate::error::{Coded as _, ErrorCode, chain};
use crate::mountinfo;

/// A bundle directory with an empty rootfs, and a directory of the host beside it.
struct Bundle {
    directory: TempDir,
}

impl Bundle {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("rootfs")).unwrap();
        fs::create_dir(directory.path().join("host")).unwrap();
        Self { directory }
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    fn host(&self, name: &str) -> PathBuf {
        self.directory.path().join("host").join(name)
    }

    /// The spec with these mounts, through the real parser.
    fn spec(&self, mounts: &serde_json::Value, readonly: bool) -> TaskSpec {
        self.spec_with(mounts, readonly, &serde_json::json!({}))
    }

    /// The same, with these fields of `linux`.
    fn spec_with(
        &self,
        mounts: &serde_json::Value,
        readonly: bool,
        linux: &serde_json::Value,
    ) -> TaskSpec {
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/a"], "cwd": "/"},
            "root": {"path": "rootfs", "readonly": readonly},
            "mounts": mounts,
            "linux": linux,
        });
        fs::write(
            self.directory.path().join("config.json"),
            config.to_string(),
        )
        .unwrap();
        TaskSpec::load(self.directory.path()).unwrap()
    }

    fn bind(&self, name: &str, destination: &str, options: &[&str]) -> serde_json::Value {
        serde_json::json!({
            "destination": destination, "type": "bind", "source": self.host(name), "options": options,
        })
    }
}

/// Runs `test` on a thread with its own mounts and working directory, and checks that the host saw
/// nothing of it.
fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let before = mountinfo::read().unwrap();
    let result = std::thread::scope(|scope| {
        let run = || {
            unshare_mounts();
            test()
        };
        scope
            .spawn(run)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let ours = std::env::temp_dir();
    let left: Vec<_> = mountinfo::read()
        .unwrap()
        .into_iter()
        .filter(|mount| mount.point.starts_with(&ours) && !before.contains(mount))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    result
}

#[allow(
    deprecated,
    reason = "its successor is unsafe for the sake of CLONE_FILES alone"
)]
fn unshare_mounts() {
    use rustix::thread::{UnshareFlags, unshare};
    unshare(UnshareFlags::FS | UnshareFlags::NEWNS).expect("these tests need root");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Mounts a file system on a directory of the test's namespace.
fn host_mount(kind: &str, path: &Path) {
    rustix::mount::mount(kind, path, kind, MountFlags::empty(), None).unwrap();
}

/// A path of the tree, seen from its root, where `assemble` has left the thread.
fn inside(path: &str) -> PathBuf {
    Path::new(".").join(path.trim_start_matches('/'))
}

fn read(path: &str) -> String {
    fs::read_to_string(inside(path)).unwrap()
}

fn mount_flags(path: &str) -> rustix::fs::StatVfsMountFlags {
    rustix::fs::statvfs(inside(path)).unwrap().f_flag
}

fn refused(result: Result<AssembledTree, TreeError>) -> (ErrorCode, String) {
    let error = result.expect_err("it should have been refused");
    (error.code(), chain(&error))
}

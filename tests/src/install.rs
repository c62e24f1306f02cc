//! Where wasmvm is installed, and copies of it with a part exchanged.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The shim's name, as containerd finds it.
const SHIM: &str = "containerd-shim-wasmvm-v1";

/// The directory with `bin/containerd-shim-wasmvm-v1` and `lib/wasmvm`, as containerd finds them.
///
/// # Panics
/// When wasmvm is not installed.
#[must_use]
pub fn prefix() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let shim = ["/usr/local/bin", "/usr/bin"]
        .map(PathBuf::from)
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(SHIM))
        .find(|path| path.exists())
        .expect("the shim is installed");
    let prefix = shim.ancestors().nth(2);
    prefix.expect("bin lies in a prefix").to_owned()
}

/// A second installation with another file for its guests; gone when dropped.
#[derive(Debug)]
pub struct OtherAgent(TempDir);

impl OtherAgent {
    /// Installs it with this initramfs in the agent's place.
    ///
    /// # Panics
    /// When the files cannot be copied.
    #[must_use]
    pub fn with(initramfs: &Path) -> Self {
        Self::with_file("agent.cpio", initramfs)
    }

    /// Installs it with this kernel.
    ///
    /// # Panics
    /// When the files cannot be copied.
    #[must_use]
    pub fn with_kernel(kernel: &Path) -> Self {
        Self::with_file("kernel", kernel)
    }

    fn with_file(name: &str, file: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (prefix(), folder.path());
        let guest = to.join("lib/wasmvm");
        fs::create_dir_all(&guest).expect("a folder");
        fs::create_dir(to.join("bin")).expect("a folder");
        // The shim looks beside its own file, so that one is a copy.
        fs::copy(from.join("bin").join(SHIM), to.join("bin").join(SHIM)).expect("copied");
        for entry in fs::read_dir(from.join("lib/wasmvm")).expect("installed files") {
            let entry = entry.expect("readable");
            if entry.file_name() != name {
                symlink(entry.path(), guest.join(entry.file_name())).expect("linked");
            }
        }
        fs::copy(file, guest.join(name)).expect("copied");
        Self(folder)
    }

    /// What `ctr run --runtime` takes.
    ///
    /// # Panics
    /// When the folder's name is no text.
    #[must_use]
    pub fn runtime(&self) -> String {
        let shim = self.0.path().join("bin").join(SHIM);
        shim.into_os_string().into_string().expect("text")
    }
}

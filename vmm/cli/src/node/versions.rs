//! Versions of wasmvm side by side below a prefix of the host, such as `/usr/local`.
//!
//! ```text
//! lib/wasmvm-versions/0.1.0-0123456789ab/bin/containerd-shim-wasmvm-v1, lib/wasmvm/kernel, …
//! bin/containerd-shim-wasmvm-v1 → ../lib/wasmvm-versions/0.1.0-0123456789ab/bin/containerd-shim-wasmvm-v1
//! ```
//!
//! A folder appears by a rename, when all of it is there, and is never changed after; a link is replaced by a rename.
//! So no running program's file is written to, and a shim, which looks for its files from where its own program lies,
//! finds those of its own version.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::running::Running;

/// Folder of all versions, below the prefix.
const VERSIONS: &str = "lib/wasmvm-versions";
/// Name of the folder in which a version is put together.
const UNFINISHED: &str = ".unfinished";
/// Folders of a version whose files are copied, whatever their names.
const FOLDERS: [&str; 2] = ["bin", "lib/wasmvm"];
/// The program that serves no pod.
const COMMAND_LINE: &str = "bin/wasmvm";
/// Programs that `bin` leads to.
const LINKS: [&str; 2] = ["containerd-shim-wasmvm-v1", "wasmvm"];
/// Bytes of the digest in a version's name.
const DIGEST_BYTES: usize = 6;

/// Why a version is not installed, or not removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum VersionsError {
    /// A file or folder cannot be read, made or removed.
    #[error("cannot {what} {}", .path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something that is not ours has the name of a link.
    #[error("{} was not put there by `wasmvm node install`; remove it first (`make uninstall`)", .0.display())]
    Foreign(PathBuf),
    /// Programs of a version run.
    #[error(
        "version {0} runs, or the node's processes cannot be seen; delete the pods that use wasmvm first"
    )]
    Runs(String),
}

/// The prefix of the host below which versions lie.
#[derive(Debug)]
pub(super) struct Host {
    prefix: PathBuf,
}

impl Host {
    /// The host whose prefix is at `prefix`.
    pub(super) fn at(prefix: &Path) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// Installs the files below `from`, and leads the links to them; returns the version's name.
    pub(super) fn install(&self, from: &Path) -> Result<String, VersionsError> {
        for name in LINKS {
            self.refuse_foreign(name)?;
        }
        let name = name_of(from)?;
        let versions = self.prefix.join(VERSIONS);
        if !versions.join(&name).exists() {
            let unfinished = versions.join(UNFINISHED);
            remove(&unfinished)?;
            for file in files(from)? {
                copy(
                    &from.join(&file),
                    &unfinished.join(&file),
                    is_program(&file),
                )?;
            }
            let done = versions.join(&name);
            let renamed =
                fs::rename(&unfinished, &done).and_then(|()| File::open(&versions)?.sync_all());
            renamed.map_err(|error| file_error("make", done, error))?;
        }
        for program in LINKS {
            self.link(program, &name)?;
        }
        Ok(name)
    }

    /// Removes every version but `keep` that does not run; returns the names of the removed and of the kept ones.
    pub(super) fn prune(
        &self,
        keep: &str,
        running: &Running,
    ) -> Result<(Vec<String>, Vec<String>), VersionsError> {
        let others = self.versions()?.into_iter().filter(|name| name != keep);
        let (kept, removed): (Vec<_>, Vec<_>) = others.partition(|name| self.runs(name, running));
        for name in &removed {
            remove(&self.prefix.join(VERSIONS).join(name))?;
        }
        Ok((removed, kept))
    }

    /// Removes all versions, and the links; none when one of them runs.
    pub(super) fn remove(&self, running: &Running) -> Result<(), VersionsError> {
        let versions = self.versions()?;
        // This very program may be one of a version's; what counts is what serves pods.
        if let Some(name) = versions.iter().find(|name| self.serves(name, running)) {
            return Err(VersionsError::Runs(name.clone()));
        }
        for program in LINKS {
            let link = self.prefix.join("bin").join(program);
            if self.is_ours(&link) {
                fs::remove_file(&link).map_err(|error| file_error("remove", link, error))?;
            }
        }
        remove(&self.prefix.join(VERSIONS))
    }

    fn runs(&self, name: &str, running: &Running) -> bool {
        self.has_program(name, |_, path| running.has(path))
    }

    fn serves(&self, name: &str, running: &Running) -> bool {
        let command_line = Path::new(COMMAND_LINE);
        self.has_program(name, |file, path| file != command_line && running.has(path))
    }

    /// Whether a program of a version, by its name in the version and by its path, is a `wanted` one; so may be one of
    /// a version that cannot be read.
    fn has_program(&self, name: &str, wanted: impl Fn(&Path, &Path) -> bool) -> bool {
        let folder = self.prefix.join(VERSIONS).join(name);
        files(&folder).map_or(true, |files| {
            let mut programs = files.iter().filter(|file| is_program(file));
            programs.any(|file| wanted(file, &folder.join(file)))
        })
    }

    /// Names of all whole versions.
    fn versions(&self) -> Result<Vec<String>, VersionsError> {
        let folder = self.prefix.join(VERSIONS);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| file_error("read", folder, error))?,
        };
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| name != UNFINISHED).collect();
        names.sort();
        Ok(names)
    }

    fn link(&self, program: &str, version: &str) -> Result<(), VersionsError> {
        let bin = self.prefix.join("bin");
        let (link, new) = (bin.join(program), bin.join(format!(".{program}.new")));
        let target = Path::new("..")
            .join(VERSIONS)
            .join(version)
            .join("bin")
            .join(program);
        let made = make_folder(&bin)
            .and_then(|()| remove_file(&new))
            .and_then(|()| symlink(&target, &new))
            .and_then(|()| fs::rename(&new, &link));
        made.map_err(|error| file_error("make", link, error))
    }

    fn refuse_foreign(&self, program: &str) -> Result<(), VersionsError> {
        let link = self.prefix.join("bin").join(program);
        match link.symlink_metadata() {
            Ok(_) if !self.is_ours(&link) => Err(VersionsError::Foreign(link)),
            _ => Ok(()),
        }
    }

    fn is_ours(&self, link: &Path) -> bool {
        fs::read_link(link).is_ok_and(|target| target.starts_with(Path::new("..").join(VERSIONS)))
    }
}

/// A version's name: the program's version, and a digest of all files.
fn name_of(from: &Path) -> Result<String, VersionsError> {
    let mut hash = Sha256::new();
    for file in files(from)? {
        let path = from.join(&file);
        hash.update(file.as_os_str().as_encoded_bytes());
        let copied =
            File::open(&path).and_then(|mut file| io::copy(&mut file, &mut Hashed(&mut hash)));
        let bytes = copied.map_err(|error| file_error("read", path, error))?;
        hash.update(bytes.to_le_bytes());
    }
    let digest: String = hash.finalize()[..DIGEST_BYTES]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("{}-{digest}", env!("CARGO_PKG_VERSION")))
}

/// The files of a version below `from`, by their paths from there, in the order of their names.
fn files(from: &Path) -> Result<Vec<PathBuf>, VersionsError> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let path = from.join(folder);
        let entries =
            fs::read_dir(&path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let entries = entries.map_err(|error| file_error("read", path, error))?;
        files.extend(
            entries
                .into_iter()
                .map(|entry| Path::new(folder).join(entry.file_name())),
        );
    }
    files.sort();
    Ok(files)
}

/// Whether a file of a version is executed on the host; the guest's kernel and initramfs are not.
fn is_program(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
    file.starts_with("bin") || name.starts_with(b"wasmvm-")
}

/// A hash as something to write to.
struct Hashed<'a>(&'a mut Sha256);

impl io::Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn file_error(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> VersionsError {
    let path = path.into();
    VersionsError::File { what, path, source }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn copy(from: &Path, to: &Path, is_program: bool) -> Result<(), VersionsError> {
    let copied = make_folder(to.parent().unwrap_or(to))
        .and_then(|()| fs::copy(from, to))
        .and_then(|_| {
            let mode = if is_program { 0o755 } else { 0o644 };
            fs::set_permissions(to, Permissions::from_mode(mode))?;
            File::open(to)?.sync_all()
        });
    copied.map_err(|error| file_error("write", to.to_owned(), error))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove(folder: &Path) -> Result<(), VersionsError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", folder.to_owned(), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 7] = [
        "bin/containerd-shim-wasmvm-v1",
        "bin/wasmvm",
        "lib/wasmvm/wasmvm-vmm",
        "lib/wasmvm/wasmvm-holder",
        "lib/wasmvm/kernel",
        "lib/wasmvm/agent.cpio",
        "lib/wasmvm/compiler.cpio",
    ];

    /// Files of a version, told by their content.
    fn payload(dir: &Path, kernel: &str) -> PathBuf {
        let from = dir.join(kernel);
        for file in FILES {
            let path = from.join(file);
            make_folder(path.parent().unwrap()).unwrap();
            fs::write(&path, kernel).unwrap();
        }
        from
    }

    /// The node's processes: the kernel's, and where there is one, a shim.
    fn processes(dir: &Path, shim: Option<&Path>) -> Running {
        let proc = dir.join("proc");
        remove(&proc).unwrap();
        make_folder(&proc.join("2")).unwrap();
        fs::write(proc.join("2/comm"), "kthreadd\n").unwrap();
        if let Some(shim) = shim {
            make_folder(&proc.join("7")).unwrap();
            symlink(shim, proc.join("7/exe")).unwrap();
        }
        Running::of(&proc)
    }

    #[test]
    fn a_version_stays_while_it_runs_and_the_links_lead_to_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("usr/local");
        let host = Host::at(&prefix);
        let one = host.install(&payload(dir.path(), "one")).unwrap();
        let shim = fs::canonicalize(prefix.join("bin/containerd-shim-wasmvm-v1")).unwrap();
        let running = processes(dir.path(), Some(&shim));
        assert_eq!(host.install(&dir.path().join("one")).unwrap(), one);
        let two = host.install(&payload(dir.path(), "two")).unwrap();
        assert_eq!(
            host.prune(&two, &running).unwrap(),
            (vec![], vec![one.clone()])
        );
        assert!(matches!(host.remove(&running), Err(VersionsError::Runs(name)) if name == one));
        let running = processes(dir.path(), None);
        assert_eq!(host.prune(&two, &running).unwrap(), (vec![one], vec![]));
        let target = fs::canonicalize(prefix.join("bin/wasmvm")).unwrap();
        let mode = |file| {
            fs::metadata(target.parent().unwrap().join(file))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode("../lib/wasmvm/wasmvm-holder"), 0o755);
        assert_eq!(mode("../lib/wasmvm/kernel"), 0o644);
        assert!(target.to_string_lossy().contains(&two));
        assert_eq!(
            fs::read_to_string(target.parent().unwrap().join("../lib/wasmvm/kernel")).unwrap(),
            "two"
        );
        host.remove(&running).unwrap();
        assert!(!prefix.join(VERSIONS).exists());
        assert_eq!(fs::read_dir(prefix.join("bin")).unwrap().count(), 0);
    }

    #[test]
    fn a_version_that_is_not_whole_never_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        let from = payload(dir.path(), "one");
        let lost = from.join("lib/wasmvm/compiler.cpio");
        fs::remove_file(&lost).unwrap();
        symlink("nowhere", &lost).unwrap();
        assert!(
            matches!(host.install(&from), Err(VersionsError::File { path, .. }) if path == lost)
        );
        assert_eq!(host.versions().unwrap(), Vec::<String>::new());
        // What an earlier try has left is no version, and is in nobody's way.
        fs::create_dir_all(
            dir.path()
                .join(VERSIONS)
                .join(UNFINISHED)
                .join("bin/wasmvm"),
        )
        .unwrap();
        fs::remove_file(&lost).unwrap();
        fs::write(&lost, "").unwrap();
        host.install(&from).unwrap();
        assert_eq!(host.versions().unwrap().len(), 1);
    }

    #[test]
    fn what_make_install_has_put_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/wasmvm"), "").unwrap();
        let refused = host.install(&payload(dir.path(), "one")).unwrap_err();
        assert!(matches!(refused, VersionsError::Foreign(_)), "{refused}");
        assert!(!dir.path().join(VERSIONS).exists());
    }
}

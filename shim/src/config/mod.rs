//! `/etc/wasmvm/config.toml`, and the files that were installed with this program.
//!
//! ```toml
//! default_memory_mib = 1024     # guest RAM of a task without a memory limit
//! console = false               # forward the guests' consoles to the shims' logs
//! boot_timeout_s = 60           # from the VM's start to an agent that listens
//! load_timeout_s = 60           # from a compiled program to one that can start
//! compile_timeout_s = 300       # for one program
//! compilers_max = 2             # programs that are compiled at once on this host; each takes up to 2 GiB
//! artifact_dir = "/var/lib/wasmvm/artifacts"  # a directory of their own
//! artifact_dir_mib_max = 8192   # beyond it, what was not used for longest goes
//! artifact_memory_mib_max = 2048  # the same for the copies in memory that VMs map
//! sharing = "host"              # whose VMs share memory pages of programs: "host", "tenant", "none"
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::bounded_file;
use crate::error::{Coded, ErrorCode};

mod layer;
pub(crate) mod options;
#[cfg(test)]
mod tests;

/// Path of the configuration; the file may be absent.
pub(crate) const CONFIG_PATH: &str = "/etc/wasmvm/config.toml";
/// Longest configuration that is read, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Largest `default_memory_mib` in a configuration.
const MEMORY_MIB_MAX: u32 = 16 * 1024;
/// Largest `compilers_max` in a configuration.
const COMPILERS_MAX: u64 = 256;
/// Largest sizes of artifacts, MiB.
const ARTIFACTS_MIB_MAX: u64 = 1 << 30;
/// Longest timeout in a configuration, seconds.
const TIMEOUT_S_MAX: u64 = 24 * 3600;

/// VMs that share the memory pages of a compiled program, the guest's kernel and its initramfs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sharing {
    /// All VMs of the host share pages.
    #[default]
    Host,
    /// The VMs of one tenant share pages: a pod's namespace, else containerd's.
    Tenant,
    /// No VMs share pages: each has copies of its own, charged to it.
    None,
}

/// The operator's settings for the shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Guest RAM of a task without a memory limit, MiB.
    pub default_memory_mib: u32,
    /// Whether to forward the guests' early-printk console to the log, live.
    pub console: bool,
    /// Longest time from the VM's start to an agent that listens, seconds.
    pub boot_timeout_s: u64,
    /// Longest time from a compiled program to one that can start, seconds.
    pub load_timeout_s: u64,
    /// Longest time for compiling one program, seconds.
    pub compile_timeout_s: u64,
    /// Most compiler VMs at once, of all shims.
    pub compilers_max: u64,
    /// Directory that keeps artifacts across restarts of the host.
    pub artifact_dir: PathBuf,
    /// Most that is kept in the directory, MiB.
    pub artifact_dir_mib_max: u64,
    /// The most that is kept in memory for VMs to map, MiB.
    pub artifact_memory_mib_max: u64,
    /// VMs that share memory pages.
    pub sharing: Sharing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_memory_mib: 1024,
            console: false,
            boot_timeout_s: 60,
            load_timeout_s: 60,
            compile_timeout_s: 300,
            compilers_max: 2,
            artifact_dir: "/var/lib/wasmvm/artifacts".into(),
            artifact_dir_mib_max: 8 * 1024,
            artifact_memory_mib_max: 2 * 1024,
            sharing: Sharing::Host,
        }
    }
}

/// Why the configuration or the installation cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file exists but cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of opening or reading the file.
        #[source]
        source: io::Error,
    },
    /// The text is not TOML, or has an unknown key, or a value of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Line of the error, counted from one.
        line: usize,
        /// Message of the parser.
        message: String,
    },
    /// A value is out of range.
    #[error("{}:{line}: {key} = {value} is refused: {reason}", path.display())]
    Value {
        /// Path of the file.
        path: PathBuf,
        /// Line of the value, counted from one.
        line: usize,
        /// Name of the key.
        key: &'static str,
        /// Value of the key.
        value: String,
        /// Reason for the refusal, in one sentence.
        reason: String,
    },
    /// The path of this program cannot be read.
    #[error("/proc/self/exe: cannot be read")]
    Executable(#[source] io::Error),
    /// A file that belongs to the installation does not exist.
    #[error("{what} is missing at {}; install it with `make install`", path.display())]
    Missing {
        /// Name of the file, such as "the guest kernel".
        what: &'static str,
        /// Path where the file was looked for.
        path: PathBuf,
        /// Error of looking at the file.
        #[source]
        source: io::Error,
    },
}

impl Coded for ConfigError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Executable(_) => ErrorCode::Internal,
            _ => ErrorCode::FailedPrecondition,
        }
    }
}

impl Config {
    /// Reads [`CONFIG_PATH`]; the defaults when it is absent.
    ///
    /// # Errors
    /// [`ConfigError`], with the line.
    pub(crate) fn load() -> Result<Self, ConfigError> {
        Self::load_from(Path::new(CONFIG_PATH))
    }

    fn load_from(path: &Path) -> Result<Self, ConfigError> {
        match Self::default().with_file(path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// The configuration, with a file's settings laid over it. The file must exist.
    ///
    /// # Errors
    /// [`ConfigError`], with the line.
    pub(crate) fn with_file(self, path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        self.with_text(&text, path)
    }

    /// The configuration, with a text's settings laid over it; `name` stands for the text in errors.
    ///
    /// # Errors
    /// [`ConfigError`], with the line.
    pub(crate) fn with_text(self, text: &str, name: &Path) -> Result<Self, ConfigError> {
        layer::apply_layer(self, text, name)
    }

    /// Longest time from the VM's start to an agent that listens.
    #[must_use]
    pub(crate) fn boot_timeout(&self) -> Duration {
        Duration::from_secs(self.boot_timeout_s)
    }

    /// Longest time for the guest to load a program. Nothing is compiled meanwhile, but its files may be cold.
    #[must_use]
    pub(crate) fn load_timeout(&self) -> Duration {
        Duration::from_secs(self.load_timeout_s)
    }

    /// Longest time for compiling one program.
    #[must_use]
    pub(crate) fn compile_timeout(&self) -> Duration {
        Duration::from_secs(self.compile_timeout_s)
    }
}

/// Files that a VM is made of. Each file existed when the installation was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestFiles {
    /// Executable of the VMM.
    pub vmm: PathBuf,
    /// Executable that stands for a pod's sandbox.
    pub holder: PathBuf,
    /// Guest kernel: uncompressed ELF.
    pub kernel: PathBuf,
    /// Initramfs of task VMs: cpio.
    pub agent: PathBuf,
    /// Initramfs of compiler VMs: cpio.
    pub compiler: PathBuf,
}

/// Prefixes that installations have, for a shim that lies in none.
const PREFIXES: [&str; 2] = ["/usr/local", "/usr"];

impl GuestFiles {
    /// Finds the files in `../lib/wasmvm`, seen from this program; where there is no such directory, in that of
    /// [`PREFIXES`]: containerd can be configured to run a copy of the shim from anywhere.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] for the first file that does not exist.
    pub(crate) fn find() -> Result<Self, ConfigError> {
        let program = std::fs::read_link("/proc/self/exe").map_err(ConfigError::Executable)?;
        let own = program.ancestors().nth(2).unwrap_or(Path::new("/"));
        let directory = |prefix: &Path| prefix.join("lib/wasmvm");
        let installed = PREFIXES.map(|prefix| directory(Path::new(prefix)));
        let found = installed.iter().find(|directory| directory.is_dir());
        match found {
            Some(found) if !directory(own).is_dir() => Self::find_in(found),
            _ => Self::find_in(&directory(own)),
        }
    }

    /// Finds the files in this directory.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] for the first file that does not exist.
    pub(crate) fn find_in(directory: &Path) -> Result<Self, ConfigError> {
        let find = |name, what| {
            let path = directory.join(name);
            match path.metadata() {
                Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(path),
                Ok(_) => Err((path, io::Error::other("empty, or not a file"))),
                Err(err) => Err((path, err)),
            }
            .map_err(|(path, source)| ConfigError::Missing { what, path, source })
        };
        Ok(Self {
            vmm: find("wasmvm-vmm", "the VM monitor")?,
            holder: find("wasmvm-holder", "the holder of pods")?,
            kernel: find("kernel", "the guest kernel")?,
            agent: find("agent.cpio", "the guest's initramfs")?,
            compiler: find("compiler.cpio", "the compiler's initramfs")?,
        })
    }
}

/// Opens an installed file, which all tasks share. Its pages are read here, so that they are not charged to the cgroup of
/// the task that happens to be the first.
///
/// # Errors
/// Those of opening the file.
pub(crate) fn open_installed(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed)?;
    Ok(file)
}

fn read_text(path: &Path) -> io::Result<String> {
    let too_long = || {
        let sentence = format!("it is longer than {CONFIG_BYTES_MAX} bytes");
        io::Error::new(io::ErrorKind::FileTooLarge, sentence)
    };
    let bytes = bounded_file::read(path, CONFIG_BYTES_MAX)?.ok_or_else(too_long)?;
    String::from_utf8(bytes).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

//! A containerd of a test's own, of a chosen version, that can be stopped, killed and started again.
//!
//! Most tests use the one that the surroundings offer, named by `CONTAINERD_ADDRESS`. One that is started
//! here takes its place for everything in this crate until it is dropped: tests run one after another.

mod config;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use config::BRIDGE;

/// How long containerd may take to answer, under emulation.
const READY_MAX: Duration = Duration::from_secs(60);
/// Of its log, lines shown when a test fails.
const LOG_LINES: usize = 40;

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The surroundings' own, from `PATH`: in the testbed Debian 12's 1.6.
    Installed,
    /// Debian 13's.
    V1_7,
    /// That of Debian's next release.
    V2,
}

impl Version {
    /// Where its programs are, in front of `PATH`. The testbed has them.
    fn folder(self) -> Option<&'static str> {
        match self {
            Self::Installed => None,
            Self::V1_7 => Some("/opt/containerd-1.7/bin"),
            Self::V2 => Some("/opt/containerd-2/bin"),
        }
    }

    fn search_path(self) -> OsString {
        let mut path = OsString::new();
        if let Some(folder) = self.folder() {
            path.push(folder);
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }
}

/// What `ctr` talks to.
#[derive(Clone, Debug)]
struct Current {
    address: PathBuf,
    version: Version,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

fn current() -> Option<Current> {
    CURRENT
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// `ctr` of the containerd in use, and told of it.
#[must_use]
pub fn ctr_command() -> Command {
    let Some(current) = current() else {
        return Command::new("ctr");
    };
    let program = current
        .version
        .folder()
        .map_or_else(|| "ctr".into(), |folder| Path::new(folder).join("ctr"));
    let mut command = Command::new(program);
    command.env("CONTAINERD_ADDRESS", current.address);
    command
}

/// The containerd in use: one has not the images of another.
#[must_use]
pub fn address() -> OsString {
    current().map_or_else(
        || std::env::var_os("CONTAINERD_ADDRESS").unwrap_or_default(),
        |current| current.address.into(),
    )
}

/// Where the containerd in use keeps what lasts until the host's next boot, bundles among it.
#[must_use]
pub fn state() -> PathBuf {
    current().map_or_else(
        || "/run/containerd".into(),
        |current| current.address.with_file_name("state"),
    )
}

/// Where the containerd in use has the plugin for pods' addresses note those that are given.
#[must_use]
pub fn leases() -> PathBuf {
    state().with_file_name(config::LEASES)
}

/// A running containerd, or one to start again. Its root, state and socket are its own.
#[derive(Debug)]
pub struct Containerd {
    version: Version,
    folder: TempDir,
    process: Option<Child>,
}

impl Containerd {
    /// Starts one without CRI, for all that follows until it is dropped.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start(version: Version) -> Self {
        Self::start_configured(version, config::without_cri)
    }

    /// Starts one with CRI, the runtime handlers `runc` and `wasmvm`, and a network for pods.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start_with_cri(version: Version) -> Self {
        Self::start_configured(version, config::with_cri)
    }

    fn start_configured(version: Version, configure: fn(&Path)) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("wasmvm-containerd.")
            .tempdir()
            .expect("a folder");
        configure(folder.path());
        let mut containerd = Self {
            version,
            folder,
            process: None,
        };
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Current {
            address: containerd.folder.path().join("sock"),
            version,
        });
        containerd.start_again();
        containerd
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("a log");
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.folder.path().join("config.toml"))
            .env("PATH", self.version.search_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("containerd can be started");
        self.process = Some(child);
        let start = Instant::now();
        while !answers() {
            let child = self.process.as_mut().expect("started");
            let ended = child.try_wait().expect("a child");
            assert!(
                ended.is_none() && start.elapsed() < READY_MAX,
                "containerd does not answer ({ended:?}):\n{}",
                self.end_of_log()
            );
        }
    }

    /// Starts another version on its folder, after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Panics
    /// As [`Self::start_again`].
    pub fn start_as(&mut self, version: Version) {
        self.version = version;
        if let Some(current) = &mut *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) {
            current.version = version;
        }
        self.start_again();
    }

    /// Stops it as a service manager does: SIGTERM. Its tasks live on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    fn signal(&mut self, signal: Signal) {
        let mut child = self.process.take().expect("it runs");
        let pid = i32::try_from(child.id()).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("it is not reaped");
        child.wait().expect("it ends");
    }

    /// All that it and its shims have logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if self.process.is_some() {
            self.stop();
        }
        if std::thread::panicking() {
            eprintln!("the end of its log:\n{}", self.end_of_log());
        }
    }
}

fn answers() -> bool {
    let status = ctr_command()
        .args(["--connect-timeout", "1s", "version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

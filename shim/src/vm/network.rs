//! The network namespace that a VMM lives in, and the settings of the spec in that namespace.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bundle::Sysctl;
use crate::error::{Coded, ErrorCode};
use crate::sys::spawn::unshare_network;

/// Namespaces that a task's settings must never reach: containerd's, in which shims run, and the first.
const HOSTS: [&str; 2] = ["/proc/self/ns/net", "/proc/1/ns/net"];

/// The network namespace a VMM lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// A new namespace, with nothing in it.
    Empty,
    /// The task's own namespace, by path; the host's own counts as [`Network::Empty`], as no VM lives there.
    Path(PathBuf),
    /// The host's, in which the calling thread is.
    Host,
}

/// Why a task's network namespace is not as the spec asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The namespace that the spec names cannot be entered.
    #[error("cannot enter config.json: linux.namespaces[network].path = {}", .path.display())]
    Enter {
        /// The path in the spec.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A new namespace cannot be made.
    #[error("cannot make a network namespace")]
    Make(#[source] io::Error),
    /// The namespace of the path is the host's.
    #[error(
        "config.json: linux.sysctl[{name:?}] = {value:?} is refused: {} is the host's own network namespace; \
         give the task one of its own", .path.display()
    )]
    Hosts {
        /// The first setting of the spec.
        name: String,
        value: String,
        /// The path of the namespace.
        path: PathBuf,
    },
    /// The kernel does not have the setting in the namespace, or does not take the value.
    #[error(
        "config.json: linux.sysctl[{name:?}] = {value:?} cannot be set in the task's network namespace"
    )]
    Sysctl {
        /// The name, as the spec has it.
        name: String,
        value: String,
        #[source]
        source: io::Error,
    },
}

impl Coded for NetworkError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Make(_) => ErrorCode::Internal,
            Self::Enter { .. } | Self::Hosts { .. } | Self::Sysctl { .. } => {
                ErrorCode::InvalidArgument
            }
        }
    }
}

/// Brings the calling thread into the namespace and applies the settings. `true`: nothing had to be set, so
/// the process that the thread spawns has to be born in a new namespace.
///
/// # Errors
/// [`NetworkError`].
pub(crate) fn enter(network: &Network, sysctls: &[Sysctl]) -> Result<bool, NetworkError> {
    match network {
        Network::Empty if sysctls.is_empty() => return Ok(true),
        Network::Empty => unshare_network().map_err(NetworkError::Make)?,
        Network::Path(path) if sysctls.is_empty() && is_hosts(path)? => return Ok(true),
        Network::Path(path) => join(path, sysctls.first())?,
        Network::Host => {}
    }
    set(sysctls)?;
    Ok(false)
}

fn join(path: &Path, first: Option<&Sysctl>) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Enter {
        path: path.to_owned(),
        source,
    };
    // A FIFO without a writer would block.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(path, flags, Mode::empty());
    let namespace = namespace
        .map(File::from)
        .map_err(|errno| failed(errno.into()))?;
    if let Some(Sysctl { name, value, .. }) = first
        && is_one_of_hosts(&namespace.metadata().map_err(failed)?).map_err(failed)?
    {
        return Err(NetworkError::Hosts {
            name: name.clone(),
            value: value.clone(),
            path: path.to_owned(),
        });
    }
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| failed(errno.into()))
}

/// Whether the path leads to the host's own namespace.
///
/// # Errors
/// [`NetworkError::Enter`], when the path leads nowhere.
pub(crate) fn is_hosts(path: &Path) -> Result<bool, NetworkError> {
    let is_hosts = std::fs::metadata(path).and_then(|namespace| is_one_of_hosts(&namespace));
    is_hosts.map_err(|source| NetworkError::Enter {
        path: path.to_owned(),
        source,
    })
}

/// Whether a namespace is one of [`HOSTS`], by device and inode (namespaces(7)), whichever path leads to
/// it.
fn is_one_of_hosts(namespace: &Metadata) -> io::Result<bool> {
    for path in HOSTS {
        let host = std::fs::metadata(path)?;
        if (host.dev(), host.ino()) == (namespace.dev(), namespace.ino()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes the settings: `/proc/sys/net` shows the namespace of the thread that opens it.
fn set(sysctls: &[Sysctl]) -> Result<(), NetworkError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/proc/sys", flags, Mode::empty());
    for sysctl in sysctls {
        let written = match &root {
            Ok(root) => set_one(root.as_fd(), sysctl),
            Err(errno) => Err((*errno).into()),
        };
        written.map_err(|source| NetworkError::Sysctl {
            name: sysctl.name.clone(),
            value: sysctl.value.clone(),
            source,
        })?;
    }
    Ok(())
}

fn set_one(root: BorrowedFd<'_>, sysctl: &Sysctl) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(root, &sysctl.path, flags, Mode::empty(), resolve)?;
    File::from(file).write_all(sysctl.value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    const PORT: &str = "net/ipv4/ip_unprivileged_port_start";

    fn port(value: &str) -> Sysctl {
        Sysctl {
            name: PORT.replace('/', "."),
            path: PORT.into(),
            value: value.to_owned(),
        }
    }

    fn read() -> String {
        std::fs::read_to_string(Path::new("/proc/sys").join(PORT)).unwrap()
    }

    /// Runs on a thread that ends with its namespace. Needs root.
    fn on_a_thread<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap())
    }

    #[test]
    fn a_sysctl_is_set_in_a_namespace_of_the_tasks_own() {
        let host = read();
        let set = on_a_thread(|| {
            assert!(!enter(&Network::Empty, &[port("81")]).unwrap());
            read()
        });
        assert_eq!(set.trim(), "81");
        assert_eq!(read(), host);
        assert!(on_a_thread(|| enter(&Network::Empty, &[])).unwrap());
    }

    #[test]
    fn the_hosts_namespace_is_known_by_whichever_path() {
        let error = on_a_thread(|| {
            let directory = tempfile::tempdir().unwrap();
            let link = directory.path().join("netns");
            std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
            enter(&Network::Path(link), &[port("81")])
        });
        let error = error.unwrap_err();
        assert!(matches!(error, NetworkError::Hosts { .. }), "{error:?}");
        assert!(
            error.to_string().contains("ip_unprivileged_port_start"),
            "{error}"
        );
        // A pod on the host's network names the host's namespace by its holder's pid.
        let path = Network::Path("/proc/self/ns/net".into());
        assert!(
            on_a_thread(|| enter(&path, &[])).unwrap(),
            "no VM lives there"
        );
        assert!(!on_a_thread(|| enter(&Network::Host, &[])).unwrap());
    }

    #[test]
    fn a_path_that_is_no_namespace_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let [gone, file, fifo] = ["gone", "file", "fifo"].map(|name| directory.path().join(name));
        std::fs::write(&file, "").unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::RUSR, 0).unwrap();
        for path in [gone, file, fifo] {
            let error = on_a_thread(|| enter(&Network::Path(path.clone()), &[])).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_sysctl_that_the_kernel_does_not_take_is_named() {
        let set = |sysctl| on_a_thread(|| enter(&Network::Empty, &[sysctl]));
        let error = set(port("a lot")).unwrap_err().to_string();
        assert!(error.contains("\"a lot\" cannot be set"), "{error}");
        let mut outside = port("1");
        outside.path = "net/ipv4/no_such_setting".into();
        assert_eq!(set(outside).unwrap_err().code(), ErrorCode::InvalidArgument);
    }

    #[test]
    fn every_error_has_its_code() {
        let source = || io::ErrorKind::NotFound.into();
        let (name, value) = (|| "a".to_owned(), || "1".to_owned());
        expect_codes([
            (NetworkError::Make(source()), ErrorCode::Internal),
            (
                NetworkError::Enter {
                    path: "/n".into(),
                    source: source(),
                },
                ErrorCode::InvalidArgument,
            ),
            (
                NetworkError::Hosts {
                    name: name(),
                    value: value(),
                    path: "/n".into(),
                },
                ErrorCode::InvalidArgument,
            ),
            (
                NetworkError::Sysctl {
                    name: name(),
                    value: value(),
                    source: source(),
                },
                ErrorCode::InvalidArgument,
            ),
        ]);
    }
}

//! The daemon's listening socket: its name, its binding, and the removal of a dead daemon's.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use sha2::{Digest as _, Sha256};

use crate::sha256::hex;

/// Scheme before the path in an address; without it containerd would dial an abstract socket.
const SCHEME: &str = "unix://";
/// File with the address in the bundle, which containerd 1.6 and 1.7 read after their restart.
const ADDRESS_FILE: &str = "address";

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The directory of all shims' sockets could not be made.
    #[error("cannot create the socket directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The socket could not be bound.
    #[error("cannot listen on {0}")]
    Bind(PathBuf, #[source] io::Error),
    /// A dead shim's socket could not be removed.
    #[error("cannot remove the dead socket {0}")]
    Stale(PathBuf, #[source] io::Error),
    /// The address could not be written into the bundle.
    #[error("cannot write the address to {0}")]
    AddressFile(PathBuf, #[source] io::Error),
}

/// Result of binding the socket.
#[derive(Debug)]
pub(super) enum Bound {
    /// A new socket, to hand to a new daemon.
    New(UnixListener),
    /// A living daemon serves the socket already.
    Served,
}

/// The socket's path: `dir/sha256(address/namespace/group)`, as containerd's `shim.SocketAddress` computes it;
/// containerd's own tests look for the socket there.
pub(super) fn path(dir: &str, address: &str, namespace: &str, group: &str) -> PathBuf {
    let joined = clean(&format!("{address}/{namespace}/{group}"));
    Path::new(dir).join(hex(&Sha256::digest(joined.as_bytes())))
}

/// The path as Go's `path.Join` cleans it: no empty and no `.` components. `..` cannot occur in a listening address.
fn clean(path: &str) -> String {
    let root = if path.starts_with('/') { "/" } else { "" };
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    format!("{root}{}", parts.join("/"))
}

/// The address of a socket as containerd dials it.
pub(super) fn address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The path in an address.
fn unix_path(address: &str) -> &Path {
    Path::new(address.strip_prefix(SCHEME).unwrap_or(address))
}

/// Listens on `path`, for root alone. A dead shim's socket of this name is replaced.
pub(super) fn bind(path: &Path) -> Result<Bound, SocketError> {
    if let Some(dir) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| SocketError::Directory(dir.to_owned(), error))?;
    }
    match bind_private(path) {
        Ok(listener) => Ok(Bound::New(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(Bound::Served);
            }
            fs::remove_file(path).map_err(|error| SocketError::Stale(path.to_owned(), error))?;
            bind_private(path)
                .map(Bound::New)
                .map_err(|error| SocketError::Bind(path.to_owned(), error))
        }
        Err(error) => Err(SocketError::Bind(path.to_owned(), error)),
    }
}

/// Binds with a mode that comes from the umask, so that no one can connect in between. `start` has one thread.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

/// Writes the address into the bundle, as a whole or not at all.
pub(super) fn write_address(bundle: &Path, address: &str) -> Result<(), SocketError> {
    let file = bundle.join(ADDRESS_FILE);
    let temporary = bundle.join(".address");
    fs::write(&temporary, address)
        .and_then(|()| fs::rename(&temporary, &file))
        .map_err(|error| SocketError::AddressFile(file, error))
}

/// Path of the socket that `start` noted in the bundle.
pub(super) fn noted(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join(ADDRESS_FILE)).ok()?;
    Some(unix_path(address.trim()).to_owned())
}

/// Whether a process listens on the socket.
pub(super) fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Removes a socket on which no process listens any more: a killed daemon cannot remove its own. The socket of a
/// living daemon stays.
pub(super) fn remove_dead(path: &Path) {
    let refused = UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if refused {
        // The next `start` of this name would replace it as well.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_name_is_the_one_containerd_computes() {
        // printf %s /run/containerd/containerd.sock/default/t1 | sha256sum
        let expected =
            "/run/containerd/s/df6a0c5cd2e9a1a16d9a3f2447365d9fc6021bc1d3d9a4caa2f5b2c4f773758f";
        for address in [
            "/run/containerd/containerd.sock",
            "/run//containerd/./containerd.sock/",
        ] {
            assert_eq!(
                path("/run/containerd/s", address, "default", "t1"),
                Path::new(expected)
            );
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/socket");
        let Bound::New(first) = bind(&path).unwrap() else {
            panic!("nobody listens yet");
        };
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&path).unwrap(), Bound::Served));
        drop(first);
        assert!(matches!(bind(&path).unwrap(), Bound::New(_)));
    }

    #[test]
    fn only_a_dead_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        write_address(dir.path(), &address(&path)).unwrap();
        let Bound::New(listener) = bind(&path).unwrap() else {
            panic!("nobody listens yet");
        };
        assert_eq!(noted(dir.path()), Some(path.clone()));
        remove_dead(&path);
        assert!(path.exists());
        drop(listener);
        remove_dead(&path);
        assert!(!path.exists());
        remove_dead(&path);
    }
}

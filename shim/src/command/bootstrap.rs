//! The two dialects of `start`.
//!
//! Up to containerd 2.2 standard input is the runtime options as an `Any` (or nothing) and the reply
//! is the bare address: 1.6 understands no other reply, and 2.x takes a bare address as task API v2,
//! which the daemon serves as well. From 2.3 on standard input is `BootstrapParams` and the reply is
//! `BootstrapResult`. On the wire the two inputs can be mistaken for each other (fields 1 and 2 are
//! both text), so `BootstrapParams` is only believed when it repeats the command line, which is the
//! rule of containerd's own `pkg/shim/compat.go`.

use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use wasmvm_protocol::agent::containerd::TASK_API_VERSION;
use wasmvm_protocol::agent::containerd::bootstrap_api::{BootstrapParams, BootstrapResult};

/// Directory in which containerd keeps the sockets of its shims, in every version.
pub(super) const SOCKET_DIR: &str = "/run/containerd/s";
/// Longest `socket_dir`: with a slash and 64 hexadecimal digits it fills the 107 bytes of a socket's path.
const SOCKET_DIR_BYTES_MAX: usize = 42;

/// Why the parameters of `start` were refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    /// `socket_dir` leaves no room for the socket's name, or is not absolute.
    #[error("socket_dir {0:?} has more than {SOCKET_DIR_BYTES_MAX} bytes, or is not absolute")]
    SocketDir(String),
    /// The reply cannot be encoded.
    #[error("cannot encode the reply to start")]
    Encode(#[source] protobuf::Error),
}

/// Dialect that containerd speaks to `start`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Dialect {
    /// containerd 1.6 to 2.2 takes a bare address. Holds the runtime's options, if there are any.
    Legacy(Option<Any>),
    /// containerd 2.3 and later speaks protobuf both ways. Holds the parameters.
    Bootstrap(Box<BootstrapParams>),
}

impl Dialect {
    /// The dialect of `input`, which containerd wrote to standard input.
    pub(super) fn of(input: &[u8], namespace: &str, id: &str) -> Self {
        match BootstrapParams::parse_from_bytes(input) {
            Ok(params) if params.instance_id == id && params.namespace == namespace => {
                Self::Bootstrap(Box::new(params))
            }
            // An input that is no `Any` either has no options that could be honoured.
            _ => Self::Legacy(
                Any::parse_from_bytes(input)
                    .ok()
                    .filter(|any| !any.type_url.is_empty()),
            ),
        }
    }

    /// The directory of the daemon's socket.
    pub(super) fn socket_dir(&self) -> Result<String, BootstrapError> {
        let Self::Bootstrap(params) = self else {
            return Ok(SOCKET_DIR.to_owned());
        };
        match params.socket_dir.as_deref() {
            None | Some("") => Ok(SOCKET_DIR.to_owned()),
            Some(dir) if dir.len() <= SOCKET_DIR_BYTES_MAX && dir.starts_with('/') => {
                Ok(dir.to_owned())
            }
            Some(dir) => Err(BootstrapError::SocketDir(dir.to_owned())),
        }
    }

    /// Address for events, where `TTRPC_ADDRESS` does not give it.
    pub(super) fn events_address(&self) -> Option<&str> {
        match self {
            Self::Bootstrap(params) => Some(params.containerd_ttrpc_address.as_str()),
            Self::Legacy(_) => None,
        }
        .filter(|address| !address.is_empty())
    }

    /// Whether containerd logs at level debug or below.
    pub(super) fn debug(&self) -> bool {
        match self {
            Self::Bootstrap(params) => params.log_level.value() < 0,
            Self::Legacy(_) => false,
        }
    }

    /// The runtime's options, of whatever type.
    pub(super) fn options(&self) -> Option<&Any> {
        match self {
            Self::Legacy(options) => options.as_ref(),
            // One extension each; containerd's options have no mark but their type.
            Self::Bootstrap(params) => params
                .extensions
                .iter()
                .filter_map(|extension| extension.value.as_ref())
                .find(|value| value.type_url.ends_with(".Options")),
        }
    }

    /// The reply that `start` prints.
    pub(super) fn reply(&self, address: &str) -> Result<Vec<u8>, BootstrapError> {
        match self {
            Self::Legacy(_) => Ok(address.as_bytes().to_vec()),
            Self::Bootstrap(_) => BootstrapResult {
                version: TASK_API_VERSION,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..Default::default()
            }
            .write_to_bytes()
            .map_err(BootstrapError::Encode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &[u8] = include_bytes!("captures/main-1.stdin");

    #[test]
    fn an_any_of_options_is_the_legacy_dialect() {
        for input in [
            &include_bytes!("captures/1620-0.stdin")[..],
            include_bytes!("captures/1724-0.stdin"),
            include_bytes!("captures/219-0.stdin"),
            b"",
            b"\xff garbage",
        ] {
            let dialect = Dialect::of(input, "default", "t1");
            assert!(matches!(dialect, Dialect::Legacy(_)), "{dialect:?}");
            assert_eq!(dialect.reply("unix:///run/x").unwrap(), b"unix:///run/x");
            assert_eq!(dialect.socket_dir().unwrap(), "/run/containerd/s");
        }
    }

    #[test]
    fn options_arrive_in_both_dialects() {
        for input in [
            &include_bytes!("captures/1620-0.stdin")[..],
            include_bytes!("captures/1724-0.stdin"),
            include_bytes!("captures/219-0.stdin"),
            MAIN,
        ] {
            let dialect = Dialect::of(input, "default", "t1");
            let options = dialect.options().unwrap();
            assert_eq!(options.type_url, "runtimeoptions.v1.Options");
            assert_eq!(options.value, b"\x12\x10/etc/wasmvm.toml");
        }
        for input in [&b""[..], b"\xff garbage"] {
            assert_eq!(Dialect::of(input, "default", "t1"), Dialect::Legacy(None));
        }
    }

    #[test]
    fn the_bootstrap_dialect_is_answered_in_kind() {
        let dialect = Dialect::of(MAIN, "default", "t1");
        assert_eq!(dialect.socket_dir().unwrap(), "/run/containerd/s");
        assert_eq!(
            dialect.events_address(),
            Some("/run/w1/d-main/c.sock.ttrpc")
        );
        assert!(!dialect.debug());
        let golden = b"\x08\x03\x12\x0dunix:///run/x\x1a\x05ttrpc";
        assert_eq!(dialect.reply("unix:///run/x").unwrap(), golden);
    }

    #[test]
    fn parameters_of_another_task_are_not_believed() {
        for (namespace, id) in [("default", "t2"), ("k8s.io", "t1")] {
            assert!(matches!(
                Dialect::of(MAIN, namespace, id),
                Dialect::Legacy(_)
            ));
        }
    }

    #[test]
    fn a_socket_dir_too_long_is_refused() {
        let mut params = BootstrapParams::parse_from_bytes(MAIN).unwrap();
        params.socket_dir = Some(format!("/{}", "d".repeat(SOCKET_DIR_BYTES_MAX)));
        let error = Dialect::Bootstrap(Box::new(params)).socket_dir();
        assert!(matches!(error, Err(BootstrapError::SocketDir(_))));
    }
}

//! Runtime options: settings for this runtime from containerd's configuration, `ctr --runtime-config-path` or a
//! client.
//!
//! Options arrive as an `Any`, at `start` (standard input) and again in Create; Create's win over those of
//! `start`, and those over `/etc/wasmvm/config.toml`.
//!
//! | type | what becomes of it |
//! |---|---|
//! | `runtimeoptions.v1.Options` | our TOML, in the file `ConfigPath` and in the text `ConfigBody` |
//! | `containerd.runc.v1.Options` | `shim_cgroup` is honoured at `start`; the rest means nothing here |
//! | `containerd.linux.runc.CreateOptions` | the same; clients of 1.6 and 1.7 send it to what is not runc |
//! | any other | accepted: clients send runc's or Windows' to whatever runtime there is |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protobuf::rt::WireType;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message as _};
use wasmvm_protocol::agent::containerd::shim::oci;

use crate::config::{Config, ConfigError};
use crate::error::{Coded, ErrorCode};

/// Name of the file in the bundle with the options that `start` was given.
const OPTIONS_FILE: &str = "options";
/// Name of `ConfigBody` in errors.
const BODY_NAME: &str = "ConfigBody of the runtime's options";

/// Why options cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    /// The bytes are not a message of the options' type.
    #[error("options of type {type_url:?} cannot be decoded")]
    Decode {
        /// Type of the options, as given.
        type_url: String,
        /// Error of the decoder.
        #[source]
        source: protobuf::Error,
    },
    /// The options' TOML was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file in which `start` leaves the options for the daemon cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Action that failed: `read` or `write`.
        action: &'static str,
        /// Path of the file in the bundle.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Coded for OptionsError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Decode { .. } => ErrorCode::InvalidArgument,
            Self::Config(error) => error.code(),
            Self::File { .. } => ErrorCode::Internal,
        }
    }
}

/// Options, decoded by their type.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Options {
    /// Our own options: a file and a text.
    Toml { path: PathBuf, body: String },
    /// runc's options, of which one is honoured.
    Runc { shim_cgroup: String },
    /// Options of another runtime, which are ignored.
    Unknown,
}

impl Options {
    fn of(any: &Any) -> Result<Self, OptionsError> {
        let failed = |source| OptionsError::Decode {
            type_url: any.type_url.clone(),
            source,
        };
        // Some clients put a host before the name.
        match any.type_url.rsplit('/').next() {
            Some("runtimeoptions.v1.Options") => {
                let [path, body] = strings(&any.value, [2, 3]).map_err(failed)?;
                let path = path.into();
                Ok(Self::Toml { path, body })
            }
            Some("containerd.runc.v1.Options") => {
                let options = oci::Options::parse_from_bytes(&any.value).map_err(failed)?;
                let shim_cgroup = options.shim_cgroup;
                Ok(Self::Runc { shim_cgroup })
            }
            Some("containerd.linux.runc.CreateOptions") => {
                let [shim_cgroup] = strings(&any.value, [9]).map_err(failed)?;
                Ok(Self::Runc { shim_cgroup })
            }
            _ => {
                tracing::debug!(any.type_url, "options of an unknown type are ignored");
                Ok(Self::Unknown)
            }
        }
    }
}

/// The text fields of these numbers in a message, for which we have no generated type:
/// `message Options { string type_url = 1; string config_path = 2; bytes config_body = 3; }`, in containerd's
/// `api/types/runtimeoptions/v1`, and `message CreateOptions { … string shim_cgroup = 9; … }`, in 1.7's
/// `runtime/linux/runctypes`.
fn strings<const N: usize>(
    bytes: &[u8],
    numbers: [u32; N],
) -> Result<[String; N], protobuf::Error> {
    let mut values = numbers.map(|_| String::new());
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        let wire_type = WireType::new(tag & 7).ok_or_else(end_of_group)?;
        let wanted = numbers.iter().position(|number| *number == tag >> 3);
        match wanted {
            Some(i) if wire_type == WireType::LengthDelimited => values[i] = input.read_string()?,
            _ => input.skip_field(wire_type)?,
        }
    }
    Ok(values)
}

fn end_of_group() -> protobuf::Error {
    io::Error::from(io::ErrorKind::InvalidData).into()
}

/// Cgroup that the options want the shim in.
pub(crate) fn shim_cgroup(options: &Any) -> Result<Option<String>, OptionsError> {
    match Options::of(options)? {
        Options::Runc { shim_cgroup } if !shim_cgroup.is_empty() => Ok(Some(shim_cgroup)),
        _ => Ok(None),
    }
}

/// Writes the options that `start` was given into the bundle, for the daemon.
pub(crate) fn save(bundle: &Path, options: &Any) -> Result<(), OptionsError> {
    let path = bundle.join(OPTIONS_FILE);
    let written = options
        .write_to_bytes()
        .map_err(io::Error::from)
        .and_then(|bytes| fs::write(&path, bytes));
    written.map_err(|source| OptionsError::File {
        action: "write",
        path,
        source,
    })
}

fn kept(bundle: &Path) -> Result<Option<Any>, OptionsError> {
    let path = bundle.join(OPTIONS_FILE);
    let read = match fs::read(&path) {
        Ok(bytes) => Any::parse_from_bytes(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    };
    read.map(Some).map_err(|source| OptionsError::File {
        action: "read",
        path,
        source,
    })
}

/// The configuration of a task: the host's, under the options that each `start` has kept in these bundles, under the
/// options of Create.
///
/// # Errors
/// [`OptionsError`], naming the text, its line and the key.
pub(crate) fn config(kept_in: &[&Path], of_create: Option<&Any>) -> Result<Config, OptionsError> {
    let mut config = Config::load()?;
    let kept: Vec<_> = kept_in
        .iter()
        .filter_map(|bundle| kept(bundle).transpose())
        .collect::<Result<_, _>>()?;
    for options in kept.iter().chain(of_create) {
        config = apply_layer(config, &Options::of(options)?)?;
    }
    Ok(config)
}

fn apply_layer(config: Config, options: &Options) -> Result<Config, ConfigError> {
    let Options::Toml { path, body } = options else {
        return Ok(config);
    };
    let config = if path.as_os_str().is_empty() {
        config
    } else {
        config.with_file(path)?
    };
    config.with_text(body, Path::new(BODY_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    const CAPTURED: &[u8] = include_bytes!("../command/captures/1620-0.stdin");

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value: value.to_vec(),
            ..Default::default()
        }
    }

    fn toml(path: &str, body: &str) -> Any {
        let mut value = vec![0x0a, 1, b'x', 0x12, u8::try_from(path.len()).unwrap()];
        value.extend_from_slice(path.as_bytes());
        value.extend_from_slice(&[0x1a, u8::try_from(body.len()).unwrap()]);
        value.extend_from_slice(body.as_bytes());
        any("runtimeoptions.v1.Options", &value)
    }

    #[test]
    fn what_containerd_sends_is_understood() {
        let options = Options::of(&Any::parse_from_bytes(CAPTURED).unwrap()).unwrap();
        let expected = Options::Toml {
            path: "/etc/wasmvm.toml".into(),
            body: String::new(),
        };
        assert_eq!(options, expected);
        let runc = any("containerd.runc.v1.Options", b"\x08\x01\x1a\x02/s\x48\x01");
        assert_eq!(shim_cgroup(&runc).unwrap(), Some("/s".into()));
        let prefixed = any(
            "type.googleapis.com/containerd.runc.v1.Options",
            b"\x1a\x02/s",
        );
        assert_eq!(shim_cgroup(&prefixed).unwrap(), Some("/s".into()));
        let older = any("containerd.linux.runc.CreateOptions", b"\x08\x01\x4a\x02/s");
        assert_eq!(shim_cgroup(&older).unwrap(), Some("/s".into()));
        let windows = any("containerd.runhcs.v1.Options", b"\xff");
        assert_eq!(Options::of(&windows).unwrap(), Options::Unknown);
        for broken in [
            "containerd.runc.v1.Options",
            "containerd.linux.runc.CreateOptions",
            "runtimeoptions.v1.Options",
        ] {
            let error = Options::of(&any(broken, b"\x1a\x7f")).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn create_wins_over_start_and_start_over_the_host() {
        let bundle = tempfile::tempdir().unwrap();
        let file = bundle.path().join("f.toml");
        fs::write(&file, "boot_timeout_s = 7\ncompile_timeout_s = 7\n").unwrap();
        let of_start = toml(file.to_str().unwrap(), "default_memory_mib = 64");
        save(bundle.path(), &of_start).unwrap();
        let body = "compile_timeout_s = 8\nSystemdCgroup = true\nConfigPath = \"\"\n";
        let config = config(&[bundle.path()], Some(&toml("", body))).unwrap();
        assert_eq!(
            (
                config.default_memory_mib,
                config.boot_timeout_s,
                config.compile_timeout_s
            ),
            (64, 7, 8)
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_text_line_and_key() {
        let bundle = tempfile::tempdir().unwrap();
        for (options, expected) in [
            (
                toml("", "\nconsole = true\nmemory = 1"),
                "ConfigBody of the runtime's options:3: unknown field `memory`",
            ),
            (
                toml("", "\nboot_timeout_s = 0"),
                "ConfigBody of the runtime's options:2: boot_timeout_s = 0 is refused",
            ),
            (toml("/no/such.toml", ""), "/no/such.toml: cannot be read"),
        ] {
            let error = config(&[bundle.path()], Some(&options)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::FailedPrecondition);
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn every_error_has_its_code() {
        let source = Any::parse_from_bytes(b"\xff").unwrap_err();
        expect_codes([
            (
                OptionsError::Decode {
                    type_url: "a".into(),
                    source,
                },
                ErrorCode::InvalidArgument,
            ),
            (
                ConfigError::Executable(io::ErrorKind::NotFound.into()).into(),
                ErrorCode::Internal,
            ),
            (
                OptionsError::File {
                    action: "read",
                    path: "/o".into(),
                    source: io::ErrorKind::NotFound.into(),
                },
                ErrorCode::Internal,
            ),
        ]);
    }
}

//! `wasmvm node`: installs wasmvm on a node of Kubernetes, from the image that holds this program and the files.
//!
//! Each version lies in a folder of its own ([`versions`]); the links in `bin` lead into the newest. A version that a
//! process of the node runs from ([`running`]) stays, so that no pod loses its files. What `wasmvm check` says of the
//! node becomes a feature for node-feature-discovery ([`feature`]). containerd is left alone: its configuration is
//! `wasmvm containerd`'s, on the node itself.

mod feature;
mod running;
mod versions;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use wasmvm_protocol::error_chain;

use self::feature::FeatureError;
use self::running::Running;
use self::versions::{Host, VersionsError};
use crate::check;

/// Exit status of an order that is not carried out.
const FAILED: u8 = 1;
/// Folder with the processes of the node, which the pod shares.
const PROC: &str = "/proc";

/// The order that a command line gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Install the files below `from`, and stay until SIGTERM where `stay` says so.
    Install {
        from: PathBuf,
        host: PathBuf,
        stay: bool,
    },
    /// Remove all versions, none of which may run.
    Remove { host: PathBuf },
}

/// Why an order is not carried out.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error(transparent)]
    Versions(#[from] VersionsError),
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// The answer cannot be written, or signals cannot be waited for.
    #[error("cannot write the answer, or wait for a signal")]
    Io(#[from] io::Error),
}

impl Order {
    /// Reads the words behind `node`; `None` when they are no order.
    pub(crate) fn of(words: &[&str]) -> Option<Self> {
        let (verb, rest) = words.split_first()?;
        let (mut from, mut host, mut stay) = (None, None, false);
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            match *word {
                "--from" => from = Some(PathBuf::from(rest.next()?)),
                "--host" => host = Some(PathBuf::from(rest.next()?)),
                "--stay" => stay = true,
                _ => return None,
            }
        }
        match (*verb, from, stay) {
            ("install", Some(from), stay) => Some(Self::Install {
                from,
                host: host?,
                stay,
            }),
            ("remove", None, false) => Some(Self::Remove { host: host? }),
            _ => None,
        }
    }

    fn carry_out(&self, out: &mut impl Write) -> Result<(), NodeError> {
        let features = Path::new(feature::FOLDER);
        let running = Running::of(Path::new(PROC));
        match self {
            Self::Install { from, host, stay } => {
                install(&Host::at(host), from, &running, out)?;
                let fit = check::is_fit(out)?;
                if feature::publish(features, fit)? {
                    writeln!(
                        out,
                        "node-feature-discovery is told: {}={fit}",
                        feature::NAME
                    )?;
                }
                out.flush()?;
                if *stay {
                    wait()?;
                }
            }
            Self::Remove { host } => {
                Host::at(host).remove(&running)?;
                feature::withdraw(features)?;
                writeln!(out, "no version of wasmvm is left below {}", host.display())?;
            }
        }
        Ok(())
    }
}

fn install(
    host: &Host,
    from: &Path,
    running: &Running,
    out: &mut impl Write,
) -> Result<(), NodeError> {
    let version = host.install(from)?;
    writeln!(out, "version {version} is installed")?;
    let (removed, kept) = host.prune(&version, running)?;
    for name in removed {
        writeln!(out, "version {name} runs no more and is removed")?;
    }
    for name in kept {
        writeln!(out, "version {name} stays, for what runs from it")?;
    }
    Ok(())
}

/// Waits for SIGTERM, by which Kubernetes ends the pod; the files stay.
fn wait() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        signal(SignalKind::terminate())?.recv().await;
        Ok(())
    })
}

/// Carries out `order` and writes what came of it to `out`; returns the exit status.
///
/// # Errors
/// None: what cannot be written is told on standard error.
pub(crate) fn run(order: &Order, out: &mut impl Write) -> io::Result<ExitCode> {
    Ok(match order.carry_out(out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wasmvm: {}", error_chain(&error));
            ExitCode::from(FAILED)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_in_any_order_of_its_options() {
        let order = |words: &str| Order::of(&words.split(' ').collect::<Vec<_>>());
        let install = |stay| Order::Install {
            from: "/a".into(),
            host: "/b".into(),
            stay,
        };
        assert_eq!(order("install --from /a --host /b"), Some(install(false)));
        assert_eq!(
            order("install --stay --host /b --from /a"),
            Some(install(true))
        );
        assert_eq!(
            order("remove --host /b"),
            Some(Order::Remove { host: "/b".into() })
        );
        for words in [
            "",
            "install",
            "install --from /a",
            "remove",
            "remove --host /b --stay",
            "remove --host /b --from /a",
            "go --host /b",
        ] {
            assert_eq!(order(words), None, "{words}");
        }
    }
}

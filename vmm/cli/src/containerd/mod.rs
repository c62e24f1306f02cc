//! `wasmvm containerd`: adds the handler to containerd's configuration, and takes the handler away.
//!
//! What is written depends on the containerd (`containerd --version`) and on who makes its configuration ([`site`]):
//!
//! | containerd | where the handler goes |
//! |---|---|
//! | 1.x | lines between two marks ([`block`]) at the end of the file: an import would replace CRI's whole table |
//! | 2.x | a file in `conf.d`, and an entry of `imports` ([`imports`]) where none covers the folder |
//! | of K3s, RKE2 | the folder that the generated file imports, else between two marks of their template |
//!
//! A change is made only where `containerd config dump` shows ([`proof`]) that the handler comes, or goes, and that
//! nothing else differs ([`edit`]). Nothing here starts or stops containerd.

mod block;
mod edit;
mod files;
mod handler;
mod imports;
mod plan;
mod program;
mod proof;
mod site;
mod status;
mod tasks;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wasmvm_protocol::error_chain;

use self::edit::EditError;
use self::program::Program;
use self::site::{Site, SiteError};

/// Exit status of a refusal, and of `status` where the handler is absent.
const REFUSED: u8 = 1;
/// Folder with the state of all tasks.
const TASKS: &str = "/run/wasmvm/tasks";

/// The operator's wish about containerd's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Enable,
    Disable,
    Status,
}

/// The order that a command line gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    verb: Verb,
    config: Option<PathBuf>,
    program: Option<PathBuf>,
}

/// Why an order is not carried out.
#[derive(Debug, thiserror::Error)]
enum ContainerdError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Tasks(#[from] tasks::TasksError),
}

impl Order {
    /// Reads the words behind `containerd`; `None` when they are no order.
    pub(crate) fn of(words: &[&str]) -> Option<Self> {
        let (verb, mut words) = match words {
            ["enable", rest @ ..] => (Verb::Enable, rest.iter()),
            ["disable", rest @ ..] => (Verb::Disable, rest.iter()),
            ["status", rest @ ..] => (Verb::Status, rest.iter()),
            _ => return None,
        };
        let (mut config, mut program) = (None, None);
        while let Some(word) = words.next() {
            let value = words.next().filter(|value| !value.is_empty());
            match *word {
                "--config" => config = Some(PathBuf::from(value?)),
                "--containerd" => program = Some(PathBuf::from(value?)),
                _ => return None,
            }
        }
        Some(Self {
            verb,
            config,
            program,
        })
    }

    fn carry_out(&self) -> Result<(String, bool), ContainerdError> {
        let site = Site::find(Path::new("/"), self.config.as_deref())?;
        let program = Program::new(self.program.as_deref().unwrap_or(&site.program));
        Ok(match self.verb {
            Verb::Enable => (edit::enable(&site, &program)?.to_string(), true),
            Verb::Disable => {
                tasks::refuse_living(Path::new(TASKS))?;
                (edit::disable(&site, &program)?.to_string(), true)
            }
            Verb::Status => {
                let status = status::look(&site, &program)?;
                (status.to_string(), status.is_enabled())
            }
        })
    }
}

/// Carries out `order` and writes what came of it to `out`; returns the exit status.
///
/// # Errors
/// `out`'s, when the answer cannot be written.
pub(crate) fn run(order: &Order, out: &mut impl Write) -> io::Result<ExitCode> {
    match order.carry_out() {
        Ok((answer, fine)) => {
            writeln!(out, "{answer}")?;
            Ok(ExitCode::from(if fine { 0 } else { REFUSED }))
        }
        Err(error) => {
            eprintln!("wasmvm: {}", error_chain(&error));
            Ok(ExitCode::from(REFUSED))
        }
    }
}

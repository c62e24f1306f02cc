//! The containerd of this host, asked for its version and for what it makes of a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use toml::Table;

/// A containerd's version, as far as its configuration depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) major: u64,
    text: String,
}

/// A containerd that can be asked about itself and about a configuration.
pub(super) trait Containerd {
    /// The version of containerd.
    fn version(&self) -> Result<Version, ProgramError>;
    /// The configuration that containerd makes of `file`, its imports and its defaults; without a file, of the defaults.
    fn configuration(&self, file: Option<&Path>) -> Result<Table, ProgramError>;
}

/// Why containerd says nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// The program cannot be run.
    #[error("cannot run {}; name the program of containerd with --containerd", .0.display())]
    Run(PathBuf, #[source] io::Error),
    /// The program refuses; holds the last line that the program wrote.
    #[error("`{command}` fails: {said}")]
    Failed { command: String, said: String },
    /// The version has no numbers.
    #[error("`{0} --version` says {1:?}, in which there is no version")]
    NoVersion(String, String),
    /// The dump is no TOML.
    #[error("`{0}` writes no TOML")]
    Dump(String, #[source] toml::de::Error),
}

impl ProgramError {
    /// The error, with `file` in the place of the copy that the program has read.
    pub(super) fn about(self, copy: &Path, file: &Path) -> Self {
        let name = |text: String| text.replace(&*copy.to_string_lossy(), &file.to_string_lossy());
        match self {
            Self::Failed { command, said } => Self::Failed {
                command: name(command),
                said: name(said),
            },
            Self::Dump(command, error) => Self::Dump(name(command), error),
            other => other,
        }
    }
}

impl Version {
    /// Reads a line such as `containerd github.com/containerd/containerd v1.7.24 88bf19b`.
    pub(super) fn of(line: &str) -> Option<Self> {
        line.split_whitespace().find_map(|word| {
            let numbers = word.strip_prefix('v').unwrap_or(word);
            let (major, rest) = numbers.split_once('.')?;
            rest.starts_with(|c: char| c.is_ascii_digit())
                .then_some(())?;
            let (major, text) = (major.parse().ok()?, numbers.to_owned());
            Some(Self { major, text })
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A containerd that is a program of this host.
#[derive(Debug)]
pub(super) struct Program(PathBuf);

impl Program {
    /// The program at `path`, or of that name in PATH.
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, ProgramError> {
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(Stdio::null());
        let output = command.output();
        let output = output.map_err(|error| ProgramError::Run(self.0.clone(), error))?;
        if !output.status.success() {
            let command = self.line(arguments);
            let said = last_line(&output);
            return Err(ProgramError::Failed { command, said });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn line(&self, arguments: &[&str]) -> String {
        format!("{} {}", self.0.display(), arguments.join(" "))
    }
}

fn last_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    match said.trim().lines().last() {
        Some(line) => line.to_owned(),
        None => output.status.to_string(),
    }
}

impl Containerd for Program {
    fn version(&self) -> Result<Version, ProgramError> {
        let said = self.ask(&["--version"])?;
        let said = said.trim().to_owned();
        Version::of(&said)
            .ok_or_else(|| ProgramError::NoVersion(self.0.display().to_string(), said))
    }

    fn configuration(&self, file: Option<&Path>) -> Result<Table, ProgramError> {
        let file = file.map(|file| file.display().to_string());
        let arguments = match &file {
            Some(file) => vec!["--config", file, "config", "dump"],
            // Before 2.0 `config dump` fails where there is no file; the daemon takes the defaults.
            None => vec!["config", "default"],
        };
        let dump = self.ask(&arguments)?;
        toml::from_str(&dump).map_err(|error| ProgramError::Dump(self.line(&arguments), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_every_distributors_line() {
        for (line, major, text) in [
            (
                "containerd github.com/containerd/containerd v1.7.24 88bf19b",
                1,
                "1.7.24",
            ),
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                1,
                "1.6.20~ds1",
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                2,
                "2.1.9+unknown",
            ),
            (
                "containerd github.com/k3s-io/containerd v2.0.4-k3s4 ",
                2,
                "2.0.4-k3s4",
            ),
            (
                "containerd containerd.io 1.6.33 d2d58213f83a351ca8f528a95fbd145f5654e957",
                1,
                "1.6.33",
            ),
        ] {
            let version = Version::of(line).unwrap();
            assert_eq!((version.major, version.text.as_str()), (major, text));
        }
        assert_eq!(Version::of("containerd unknown v2"), None);
    }

    #[test]
    fn a_program_that_fails_is_quoted_by_its_last_line() {
        let program = Program::new(Path::new("/bin/sh"));
        let error = program.ask(&["-c", "echo one >&2; echo two >&2; exit 3"]);
        assert!(error.unwrap_err().to_string().ends_with("fails: two"));
        let error = Program::new(Path::new("/nonexistent"))
            .version()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot run /nonexistent; name the program of containerd with --containerd"
        );
    }
}

//! The command line, in the style of Go's `flag` package (containerd `pkg/shim`, `shim.go`).

use std::path::PathBuf;

use wasmvm_protocol::stream::ID_BYTES_MAX;

/// Action that the program is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Leave a daemon behind and print its address.
    Start,
    /// Undo a task from outside, after its daemon has exited.
    Delete,
    /// Describe the runtime (containerd 2.2 and later).
    Info,
    /// Print the version for a human.
    Version,
    /// Run as the daemon, whose listener is standard input. Only `start` asks for this action.
    Serve,
}

/// The command line, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// Action that is asked for.
    pub action: Action,
    /// containerd's namespace; empty for `-info` and `-v` only.
    pub namespace: String,
    /// The task's id; empty for `-info` and `-v` only.
    pub id: String,
    /// Address of containerd's gRPC socket.
    pub address: String,
    /// containerd's binary: the legacy way to publish events, unused.
    pub publish_binary: String,
    /// Path of the bundle; `start` has it as its working directory instead.
    pub bundle: Option<PathBuf>,
    /// Whether containerd logs at level debug or trace.
    pub debug: bool,
}

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    /// A flag is not one of containerd's.
    #[error(
        "flag {0:?} is unknown; containerd's are -namespace, -id, -address, -publish-binary, -bundle, -debug, -info and -v"
    )]
    Flag(String),
    /// A flag that needs a value is the last word.
    #[error("flag -{0} needs a value")]
    Value(&'static str),
    /// The action is neither `start` nor `delete`.
    #[error("action {0:?} is unknown; this program is run by containerd, as `start` or `delete`")]
    Action(String),
    /// A word follows the action.
    #[error("{0:?} follows the action")]
    Trailing(String),
    /// A flag that the action needs is missing.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// An id that cannot name a directory, or one beyond containerd's own limits.
    #[error(
        "-{flag} is {value:?}; allowed are 1 to {ID_BYTES_MAX} letters, digits, dots, dashes and underscores, beginning with a letter or digit"
    )]
    Identifier {
        /// Name of the flag: `id` or `namespace`.
        flag: &'static str,
        /// Value that was refused.
        value: String,
    },
}

impl Args {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// [`ArgsError`], naming the flag.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, ArgsError> {
        let mut args = Self {
            action: Action::Version,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: String::new(),
            bundle: None,
            debug: false,
        };
        let mut asked = None;
        let mut words = words;
        let action = loop {
            let Some(word) = words.next() else { break None };
            let Some(flag) = word.strip_prefix('-') else {
                break Some(word);
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = |name| inline.clone().or_else(|| words.next()).ok_or(name);
            match name {
                "namespace" => args.namespace = value("namespace").map_err(ArgsError::Value)?,
                "id" => args.id = value("id").map_err(ArgsError::Value)?,
                "address" => args.address = value("address").map_err(ArgsError::Value)?,
                "publish-binary" => {
                    args.publish_binary = value("publish-binary").map_err(ArgsError::Value)?;
                }
                "bundle" => {
                    args.bundle = Some(value("bundle").map_err(ArgsError::Value)?.into());
                }
                "debug" => args.debug = inline.as_deref() != Some("false"),
                "info" => asked = Some(Action::Info),
                "v" => asked = Some(Action::Version),
                _ => return Err(ArgsError::Flag(word)),
            }
        };
        if let Some(action) = asked {
            // An action that needs no name has none, and so none that was not checked.
            let (namespace, id) = (String::new(), String::new());
            return Ok(Self {
                action,
                namespace,
                id,
                ..args
            });
        }
        args.action = parse_action(action.as_deref())?;
        match words.next() {
            Some(word) => Err(ArgsError::Trailing(word)),
            None => args.checked(),
        }
    }

    fn checked(self) -> Result<Self, ArgsError> {
        check_identifier("namespace", &self.namespace)?;
        check_identifier("id", &self.id)?;
        if self.action == Action::Start && self.address.is_empty() {
            return Err(ArgsError::Missing("address"));
        }
        Ok(self)
    }
}

fn parse_action(word: Option<&str>) -> Result<Action, ArgsError> {
    match word {
        Some("start") => Ok(Action::Start),
        Some("delete") => Ok(Action::Delete),
        Some("serve") => Ok(Action::Serve),
        other => Err(ArgsError::Action(other.unwrap_or_default().to_owned())),
    }
}

/// Checks an id or a namespace: both become names of directories. containerd's own rule (`pkg/identifiers`) is
/// stricter.
fn check_identifier(flag: &'static str, value: &str) -> Result<(), ArgsError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if value.is_empty() {
        return Err(ArgsError::Missing(flag));
    }
    if value.len() <= ID_BYTES_MAX
        && value.chars().all(allowed)
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    Err(ArgsError::Identifier {
        flag,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    /// The words of a captured launch.
    pub(super) fn captured(text: &str) -> impl Iterator<Item = String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("arg:").map(str::to_owned))
    }

    #[test]
    fn containerds_own_launches_are_read() {
        for (text, address) in [
            (
                include_str!("captures/1620-0.args"),
                "/run/w1/d-1620/c.sock",
            ),
            (
                include_str!("captures/1724-0.args"),
                "/run/w1/d-1724/c.sock",
            ),
            (include_str!("captures/219-0.args"), "/run/w1/d-219/c.sock"),
            (
                include_str!("captures/main-1.args"),
                "/run/w1/d-main/c.sock",
            ),
        ] {
            let args = Args::parse(captured(text)).unwrap();
            assert_eq!(args.action, Action::Start);
            assert_eq!(
                (args.namespace.as_str(), args.id.as_str()),
                ("default", "t1")
            );
            assert_eq!(args.address, address);
            assert!(!args.debug && args.bundle.is_none());
        }
        let info = Args::parse(captured(include_str!("captures/main-0.args"))).unwrap();
        assert_eq!(info.action, Action::Info);
    }

    #[test]
    fn delete_names_the_bundle() {
        let args = parse("-namespace n -address a -id t -bundle /run/b -debug delete").unwrap();
        assert_eq!(args.action, Action::Delete);
        assert_eq!(args.bundle, Some("/run/b".into()));
        assert!(args.debug);
    }

    #[test]
    fn gos_spellings_of_a_flag_are_one() {
        let args = parse("--namespace=n --id=t -address=a=b -debug=false start").unwrap();
        assert_eq!(args.address, "a=b");
        assert!(!args.debug);
    }

    #[test]
    fn what_is_not_containerds_is_refused() {
        assert_eq!(parse("-x start"), Err(ArgsError::Flag("-x".into())));
        assert_eq!(parse("-id"), Err(ArgsError::Value("id")));
        assert_eq!(parse("-id t run"), Err(ArgsError::Action("run".into())));
        assert_eq!(parse(""), Err(ArgsError::Action(String::new())));
        assert_eq!(parse("-id t start"), Err(ArgsError::Missing("namespace")));
        assert_eq!(
            parse("-namespace n -id t start"),
            Err(ArgsError::Missing("address"))
        );
        assert_eq!(
            parse("-namespace n -id t -address a start now"),
            Err(ArgsError::Trailing("now".into()))
        );
    }

    #[test]
    fn an_id_is_never_a_path() {
        for id in ["../x", ".", "a/b", &"x".repeat(77)] {
            let refused = parse(&format!("-namespace n -address a -id {id} start"));
            assert!(
                matches!(refused, Err(ArgsError::Identifier { flag: "id", .. })),
                "{refused:?}"
            );
        }
        for asked in ["-v", "-info"] {
            let asked = parse(&format!("-namespace ../n -id ../x {asked}")).unwrap();
            assert!(asked.namespace.is_empty() && asked.id.is_empty());
        }
        let longest = "x".repeat(76);
        assert!(parse(&format!("-namespace n -address a -id {longest} start")).is_ok());
    }
}

//! How containerd names a stream: nothing, a FIFO's path, or a URI that says where output is logged.
//!
//! | name | what |
//! |---|---|
//! | empty | the null device |
//! | `/path`, `fifo:///path` | the client's FIFO |
//! | `file:///path` | appended to that file; its directories are made |
//! | `binary:///program?a=b&c` | `program a b c ""` reads it; see [`super::logger`] |
//! | `binary-v2:///program` | the same, but a byte says that the program is ready (containerd 2.2) |
//!
//! Names are decoded as Go's `net/url` does, which is what runc's shim uses.

use std::path::PathBuf;

use super::StdioError;

/// Longest name of a stream, bytes: a path and the arguments of a logger.
const NAME_BYTES_MAX: usize = 64 * 1024;

/// Where a stream of the program goes, or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The null device, for an empty name.
    Null,
    /// A FIFO of the client's.
    Fifo(PathBuf),
    /// A file that the output is appended to.
    File(PathBuf),
    /// A program that reads the output.
    Logger(LoggerCommand),
}

/// The program behind a `binary://` URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggerCommand {
    /// The absolute path of the program.
    pub program: PathBuf,
    /// Keys and values of the query, one after the other.
    pub args: Vec<String>,
    /// Whether the program reports readiness by a byte, not just by an end of file.
    pub says_ready: bool,
}

/// Reads a stream's name.
///
/// # Errors
/// [`StdioError::Scheme`] for a name of any other form than those above.
pub(super) fn parse(stream: &'static str, name: &str) -> Result<Target, StdioError> {
    let refused = || StdioError::Scheme {
        stream,
        uri: crate::error::printable(name),
    };
    if name.is_empty() {
        return Ok(Target::Null);
    }
    if name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(refused());
    }
    if name.starts_with('/') {
        return Ok(Target::Fifo(name.into()));
    }
    let (scheme, rest) = name.split_once("://").ok_or_else(refused)?;
    // A FIFO's path is taken literally; containerd does not encode it.
    if scheme == "fifo" && rest.starts_with('/') {
        return Ok(Target::Fifo(rest.into()));
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path, false).filter(|path| path.starts_with('/'));
    let path = PathBuf::from(path.ok_or_else(refused)?);
    match scheme {
        "file" => Ok(Target::File(path)),
        "binary" | "binary-v2" => Ok(Target::Logger(LoggerCommand {
            program: path,
            args: arguments(query).ok_or_else(refused)?,
            says_ready: scheme == "binary-v2",
        })),
        _ => Err(refused()),
    }
}

/// The path of standard input, which is a FIFO or nothing.
///
/// # Errors
/// [`StdioError::Scheme`].
pub(super) fn input_path(name: &str) -> Result<Option<PathBuf>, StdioError> {
    match parse("stdin", name)? {
        Target::Null => Ok(None),
        Target::Fifo(path) => Ok(Some(path)),
        Target::File(_) | Target::Logger(_) => Err(StdioError::Scheme {
            stream: "stdin",
            uri: crate::error::printable(name),
        }),
    }
}

/// The keys and values of a query. A key that comes twice counts once, with its first value.
fn arguments(query: &str) -> Option<Vec<String>> {
    let mut args: Vec<String> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key, true)?;
        let value = decode(value, true)?;
        if !args.iter().step_by(2).any(|known| *known == key) {
            args.extend([key, value]);
        }
    }
    Some(args)
}

/// Resolves `%41`, and in a query `+`; `None` when the result is no text or has a zero byte.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digit = |at: usize| char::from(digits[at]).to_digit(16);
                u8::try_from(digit(0)? * 16 + digit(1)?).ok()?
            }
            b'+' if query => b' ',
            other => *other,
        });
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
}

/// The logger of both outputs, of which one may be the null device instead.
pub(super) fn shared<'a>(stdout: &'a Target, stderr: &'a Target) -> Option<&'a LoggerCommand> {
    match (stdout, stderr) {
        (Target::Logger(logger), other) | (other, Target::Logger(logger))
            if *other == Target::Null || *other == Target::Logger(logger.clone()) =>
        {
            Some(logger)
        }
        _ => None,
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Coded as _;
    use crate::error::ErrorCode;

    fn logger(name: &str) -> LoggerCommand {
        match parse("stdout", name) {
            Ok(Target::Logger(logger)) => logger,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_name_is_known() {
        assert_eq!(parse("stdout", "").unwrap(), Target::Null);
        for name in ["/a/%41", "fifo:///a/%41"] {
            assert_eq!(
                parse("stdout", name).unwrap(),
                Target::Fifo("/a/%41".into())
            );
        }
        let file = Target::File("/var/log/a b?.log".into());
        assert_eq!(
            parse("stdout", "file:///var/log/a%20b%3f.log").unwrap(),
            file
        );
        let expected = LoggerCommand {
            program: "/usr/bin/log".into(),
            args: ["a", "b c+d", "e", "", "f", "="].map(str::to_owned).into(),
            says_ready: false,
        };
        let name = "binary:///usr/bin/log?a=b+c%2Bd&e&a=second&f==";
        assert_eq!(logger(name), expected);
        assert!(logger("binary-v2:///x").says_ready && logger("binary:///x").args.is_empty());
    }

    #[test]
    fn what_is_none_of_them_is_refused_by_name() {
        for name in [
            "tcp://host:1",
            "file://relative",
            "fifo://a",
            "binary:///x%zz",
            "binary:///x?a=%00",
            "file:///%ff",
            "a/b",
            "/a\0b",
        ] {
            let error = parse("stdout", name).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(error.to_string().starts_with("stdout is \""), "{error}");
        }
        let error = input_path("file:///a").unwrap_err().to_string();
        assert!(error.starts_with("stdin is \"file:///a\""), "{error}");
        assert_eq!(input_path("/a").unwrap(), Some("/a".into()));
    }

    #[test]
    fn one_logger_serves_both_outputs() {
        let parse = |name| parse("stdout", name).unwrap();
        let (a, b) = (parse("binary:///a"), parse("binary:///b"));
        let (null, file) = (Target::Null, parse("file:///a"));
        assert!(shared(&a, &a).is_some() && shared(&a, &null).is_some());
        assert!(shared(&null, &a).is_some());
        assert!(shared(&a, &b).is_none() && shared(&file, &a).is_none());
        assert!(shared(&file, &null).is_none());
    }
}

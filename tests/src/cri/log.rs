//! A container's log file: what containerd writes down of the container's output for a kubelet.
//!
//! A line is `TIME STREAM TAG TEXT` (Kubernetes' design proposal "CRI: container logging"); `P` is the tag of a part
//! of a line that follows in the next one, `F` of a line's end.

use std::fs;
use std::path::Path;

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without the line's end; put together from its parts.
    pub text: String,
}

/// The lines that a log file has now.
///
/// # Panics
/// When it cannot be read, or is no log.
#[must_use]
#[track_caller]
pub fn read(path: &Path) -> Vec<LogLine> {
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(&text).unwrap_or_else(|line| panic!("{} has the line {line:?}", path.display()))
}

/// The text of one stream, with a line's end after each line.
#[must_use]
pub fn text_of(lines: &[LogLine], stream: &str) -> String {
    lines
        .iter()
        .filter(|line| line.stream == stream)
        .map(|line| format!("{}\n", line.text))
        .collect()
}

/// The lines, or the one that is none.
fn parse(text: &str) -> Result<Vec<LogLine>, &str> {
    let mut lines: Vec<LogLine> = Vec::new();
    // Of each stream: its last line is not over yet.
    let mut open: Vec<(String, usize)> = Vec::new();
    for line in text.lines() {
        let (stream, tag, text) = fields(line).ok_or(line)?;
        let begun = open.iter().position(|(name, _)| name == stream);
        let at = match begun {
            Some(begun) => open.swap_remove(begun).1,
            None => {
                lines.push(LogLine {
                    stream: stream.into(),
                    text: String::new(),
                });
                lines.len() - 1
            }
        };
        lines[at].text.push_str(text);
        if tag == "P" {
            open.push((stream.into(), at));
        }
    }
    Ok(lines)
}

/// Stream, tag and text of a line with a time before them.
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let mut fields = line.splitn(4, ' ');
    let (time, stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
    let (day, hour) = time.split_once('T')?;
    let sensible = day.len() == "2000-01-01".len()
        && hour.contains(':')
        && ["stdout", "stderr"].contains(&stream)
        && ["F", "P"].contains(&tag);
    sensible.then_some((stream, tag, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.678901234Z";

    #[test]
    fn parts_of_a_line_are_put_together_by_stream() {
        let log = format!(
            "{TIME} stdout P one \n{TIME} stderr F other  line\n{TIME} stdout F two\n{TIME} stdout F \n"
        );
        let lines = parse(&log).expect("a log");
        assert_eq!(text_of(&lines, "stdout"), "one two\n\n");
        assert_eq!(text_of(&lines, "stderr"), "other  line\n");
    }

    #[test]
    fn what_is_no_log_is_named() {
        for line in [
            "",
            "text",
            "2026 stdout F x",
            &format!("{TIME} stdin F x"),
            &format!("{TIME} stdout X x"),
        ] {
            assert_eq!(parse(&format!("{line}\n")), Err(line));
        }
    }
}

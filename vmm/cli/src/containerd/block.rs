//! The lines between two marks that `wasmvm containerd enable` adds to a file, as a function of the file's text.

/// The first line of what is added to a file of somebody else's.
const BEGIN: &str = "# >>> wasmvm containerd enable: `wasmvm containerd disable` removes the lines up to the next mark";
/// The first line of a file that did not exist.
const BEGIN_FILE: &str =
    "# >>> wasmvm containerd enable made this file: `wasmvm containerd disable` removes the file";
/// The line after the last one.
const END: &str = "# <<< wasmvm";

/// The first mark stands without the second.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "line {0} begins what wasmvm has added, and no line `{END}` ends it; put that line back, or delete the added lines"
)]
pub(super) struct Unclosed(usize);

/// A file's text with `lines` at its end; the text of a new file where there is none.
pub(super) fn with(text: Option<&str>, lines: &str) -> String {
    match text {
        None => format!("{BEGIN_FILE}\n{lines}{END}\n"),
        // The empty line belongs to what is added; it also ends a last line that has no end.
        Some(text) => format!("{text}\n{BEGIN}\n{lines}{END}\n"),
    }
}

/// A file's text without what [`with`] has added: `None` for a file that was made by it and has nothing else.
///
/// # Errors
/// [`Unclosed`], when the end of what was added is missing.
pub(super) fn without(text: &str) -> Result<Option<String>, Unclosed> {
    let (mut rest, mut made) = (text.to_owned(), false);
    while let Some((begin, is_file)) = begin_of(&rest) {
        let line = rest[..begin].matches('\n').count() + 1;
        let end = line_from(&rest, begin, END).ok_or(Unclosed(line))? + END.len();
        let end = end + usize::from(rest[end..].starts_with('\n'));
        // The line break before the mark was added with it.
        rest.replace_range(begin.saturating_sub(1)..end, "");
        made |= is_file;
    }
    Ok((!(made && rest.is_empty())).then_some(rest))
}

/// Whether a file's text has what [`with`] adds.
pub(super) fn is_in(text: &str) -> bool {
    begin_of(text).is_some()
}

fn begin_of(text: &str) -> Option<(usize, bool)> {
    let file = line_from(text, 0, BEGIN_FILE).map(|at| (at, true));
    file.or_else(|| line_from(text, 0, BEGIN).map(|at| (at, false)))
}

/// Where the first whole line that is `line` begins, at or after `from`.
fn line_from(text: &str, from: usize, line: &str) -> Option<usize> {
    let mut found = text[from..].match_indices(line).map(|(at, _)| from + at);
    found.find(|at| {
        let end = at + line.len();
        (*at == 0 || text[..*at].ends_with('\n'))
            && (end == text.len() || text[end..].starts_with('\n'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_can_be_taken_out_to_the_byte() {
        for text in [
            "",
            "\n",
            "version = 2",
            "version = 2\n",
            "a = 1\r\n\r\n",
            "# é\n\n\n",
        ] {
            let added = with(Some(text), "b = 1\n");
            assert!(is_in(&added) && !is_in(text));
            assert_eq!(without(&added), Ok(Some(text.to_owned())), "{text:?}");
            assert_eq!(without(text), Ok(Some(text.to_owned())));
        }
        assert_eq!(without(&with(None, "b = 1\n")), Ok(None));
    }

    #[test]
    fn what_stands_behind_the_lines_stays() {
        let text = with(Some("a = 1\n"), "b = 1\n") + "[user]\n";
        assert_eq!(without(&text), Ok(Some("a = 1\n[user]\n".to_owned())));
        let made = with(None, "b = 1\n") + "[user]\n";
        assert_eq!(without(&made), Ok(Some("[user]\n".to_owned())));
    }

    #[test]
    fn lines_that_were_added_twice_go_together() {
        let text = with(Some(&with(Some("a = 1\n"), "b = 1\n")), "b = 2\n");
        assert_eq!(without(&text), Ok(Some("a = 1\n".to_owned())));
    }

    #[test]
    fn a_missing_end_is_told_by_the_line_of_its_begin() {
        let text = format!("a = 1\n{BEGIN}\nb = 1\n");
        assert_eq!(without(&text), Err(Unclosed(2)));
    }
}

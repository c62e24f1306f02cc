//! The one entry of `imports` that `wasmvm containerd enable` adds to a file, as a function of the file's text.
//!
//! The entry is put in and taken out as text, at the place that the parser names: comments, order and spaces of the
//! file stay as they are.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

/// The end of the line that is added where a file has no `imports`.
const OURS: &str = " # by wasmvm containerd enable";

/// The keys of a configuration that decide about imports.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Head {
    version: Option<Spanned<i64>>,
    imports: Option<Spanned<Vec<Spanned<String>>>>,
}

impl Head {
    /// Reads a configuration's text.
    ///
    /// # Errors
    /// The parser's, with line and column.
    pub(super) fn of(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The configuration's version; `None` where the file names none.
    pub(super) fn version(&self) -> Option<i64> {
        self.version.as_ref().map(|version| *version.get_ref())
    }

    /// Whether the file imports every TOML file of `folder`. Relative entries start at the file's own folder.
    pub(super) fn covers(&self, folder: &Path, file: &Path) -> bool {
        let parent = file.parent().unwrap_or(Path::new("/"));
        let mut entries = self.imports.iter().flat_map(|imports| imports.get_ref());
        entries.any(|entry| parent.join(entry.get_ref()) == folder.join("*.toml"))
    }
}

/// The entry for the drop-in `file`: a pattern, because containerd does not start when a file that `imports` names
/// in full is missing.
pub(super) fn entry(file: &Path) -> String {
    let mut pattern = PathBuf::from(file);
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    pattern.set_file_name(format!("{stem}*.toml"));
    pattern.display().to_string()
}

/// The text with `entry` among its imports.
///
/// # Errors
/// The parser's, with line and column.
pub(super) fn with(text: &str, entry: &str) -> Result<String, toml::de::Error> {
    let head = Head::of(text)?;
    let mut text = text.to_owned();
    if let Some(imports) = head.imports {
        let comma = if imports.get_ref().is_empty() {
            ""
        } else {
            ", "
        };
        text.insert_str(imports.span().start + 1, &format!("{entry:?}{comma}"));
        return Ok(text);
    }
    let line = format!("imports = [{entry:?}]{OURS}");
    // Before any table: behind the line of the version, else at the beginning.
    let Some(version) = head.version else {
        return Ok(format!("{line}\n{text}"));
    };
    let end = version.span().end;
    match text[end..].find('\n') {
        Some(at) => text.insert_str(end + at + 1, &format!("{line}\n")),
        None => text.push_str(&format!("\n{line}")),
    }
    Ok(text)
}

/// The text without `entry` among its imports.
///
/// # Errors
/// The parser's, with line and column.
pub(super) fn without(text: &str, entry: &str) -> Result<String, toml::de::Error> {
    let line = format!("imports = [{entry:?}]{OURS}");
    if text.starts_with(&format!("{line}\n")) {
        return Ok(text[line.len() + 1..].to_owned());
    }
    if let Some(rest) = text.strip_suffix(&format!("\n{line}")) {
        return Ok(rest.to_owned());
    }
    if text.contains(&format!("\n{line}\n")) {
        return Ok(text.replacen(&format!("\n{line}\n"), "\n", 1));
    }
    let mut text = text.to_owned();
    for entries in Head::of(&text)?.imports.iter() {
        let ours = entries
            .get_ref()
            .iter()
            .find(|other| other.get_ref() == entry);
        if let Some(span) = ours.map(Spanned::span) {
            text.replace_range(with_comma(&text, span), "");
        }
    }
    Ok(text)
}

/// The place of an element with its comma: the one behind it, else the one before it.
fn with_comma(text: &str, element: Range<usize>) -> Range<usize> {
    let behind = &text[element.end..];
    if let Some(rest) = behind.strip_prefix(',') {
        return element.start..element.end + 1 + usize::from(rest.starts_with(' '));
    }
    let before = text[..element.start].trim_end();
    match before.strip_suffix(',') {
        Some(before) => before.len()..element.end,
        None => element,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "/etc/containerd/conf.d/wasmvm*.toml";

    #[test]
    fn the_entry_is_put_in_and_taken_out_to_the_byte() {
        for text in [
            "",
            "# nothing\n",
            "version = 3",
            "version = 3\n",
            "version = 3 # of ours\n[plugins]\n",
            "root = '/x'\nversion = 3\nimports = []\n",
            "imports = [ # none\n]\n[plugins]\n",
            "imports = ['/a.toml', \"b/*.toml\"]",
            "version = 2\nimports = [\n  # first\n  \"/a.toml\",\n]\n",
            "[plugins]\n  [plugins.x]\n",
        ] {
            let added = with(text, ENTRY).unwrap();
            let head = Head::of(&added).unwrap();
            let entries = head.imports.unwrap().into_inner();
            assert_eq!(entries[0].get_ref(), ENTRY, "{added}");
            assert_eq!(
                head.version.map(Spanned::into_inner),
                Head::of(text).unwrap().version()
            );
            assert_eq!(without(&added, ENTRY).unwrap(), text);
            assert_eq!(without(text, ENTRY).unwrap(), text);
        }
    }

    #[test]
    fn an_entry_that_was_moved_is_found() {
        let out = |text: &str| without(text, ENTRY).unwrap();
        let entry = format!("{ENTRY:?}");
        assert_eq!(
            out(&format!("imports = ['a', {entry}]\n")),
            "imports = ['a']\n"
        );
        assert_eq!(
            out(&format!("imports = ['a', '{ENTRY}', 'b']\n")),
            "imports = ['a', 'b']\n"
        );
        let with_more = format!("imports = [{entry}, 'a']{OURS}\n");
        assert_eq!(out(&with_more), format!("imports = ['a']{OURS}\n"));
    }

    #[test]
    fn a_folder_is_covered_by_its_own_pattern_alone() {
        let covers = |text: &str| {
            let file = Path::new("/etc/containerd/config.toml");
            Head::of(text)
                .unwrap()
                .covers(Path::new("/etc/containerd/conf.d"), file)
        };
        assert!(covers("imports = ['a', '/etc/containerd/conf.d/*.toml']"));
        assert!(covers("imports = ['conf.d/*.toml']"));
        assert!(!covers("imports = ['/etc/containerd/conf.d/other.toml']"));
        assert!(!covers("imports = ['/etc/containerd/conf.d/10-*.toml']"));
        assert!(!covers("version = 3"));
    }

    #[test]
    fn the_entry_is_a_pattern_that_may_match_nothing() {
        assert_eq!(
            entry(Path::new("/etc/containerd/conf.d/wasmvm.toml")),
            ENTRY
        );
    }
}

//! Errors as one sentence.

use std::error::Error;
use std::fmt::Write as _;

/// The error and its sources, outermost first, joined by colons. A source that its parent already quotes is
/// left out.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let part = inner.to_string();
        if !text.ends_with(&part) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {part}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open /etc/passwd")]
        Silent(#[source] std::io::Error),
        #[error("cannot open /etc/passwd: {0}")]
        Quoting(#[source] std::io::Error),
    }

    #[test]
    fn each_source_is_printed_once() {
        let inner = || std::io::Error::other("no such thing");
        for error in [Outer::Silent(inner()), Outer::Quoting(inner())] {
            let expected = "cannot open /etc/passwd: no such thing";
            assert_eq!(error_chain(&error), expected);
        }
    }
}

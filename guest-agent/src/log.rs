//! The agent's few words: lines on descriptor 2.
//!
//! In PID 1 that is `/dev/kmsg`, so they are kernel messages and reach the early-printk console by
//! their level. One line is one `write`, as `/dev/kmsg` makes one record of each.

/// Longest line, bytes; `/dev/kmsg` refuses more than 1024 - 48 (kernel `printk/internal.h`).
pub const LINE_BYTES_MAX: usize = 900;

/// Severity, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something that was asked for did not happen.
    Error = 3,
    /// Something abnormal, but harmless.
    Warning = 4,
}

/// Writes one line; failures are ignored, there is nobody to tell.
pub fn line(level: Level, text: &str) {
    let text = clip(text, LINE_BYTES_MAX);
    let record = format!(
        "<{}>wasmvm-agent: {}\n",
        level as u8,
        text.replace('\n', " ")
    );
    let _ = rustix::io::write(rustix::stdio::stderr(), record.as_bytes());
}

/// The start of `text`, at most `bytes` long, cut at a character.
#[must_use]
pub fn clip(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_at_a_character() {
        assert_eq!(clip("aé", 2), "a");
        assert_eq!(clip("aé", 3), "aé");
        assert_eq!(clip("", 3), "");
    }
}

//! What guests say, in the shim's log.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::sync::Mutex;

use super::*;

/// What one event writes.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// One event is one line, and names the task once: whatever a guest has said in a message or in an error,
/// it is not taken for a field.
pub fn log(input: &[u8]) {
    let said = String::from_utf8_lossy(input);
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_ansi(false)
        .event_format(TaskLine {
            task_id: "web".into(),
        })
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        crate::vm::fuzz::console_line("web", input);
        let error = crate::error::printable(&said);
        tracing::warn!(%error, "the guest did not take the signal");
        tracing::warn!("the guest refuses: {error}");
    });
    let lines = lines.0.lock().unwrap();
    let lines = String::from_utf8(lines.clone()).unwrap();
    assert_eq!(lines.matches('\n').count(), 3, "{lines:?}");
    for line in lines.lines() {
        let names = fields(line)
            .into_iter()
            .filter(|field| field.starts_with("task_id="));
        assert_eq!(names.collect::<Vec<_>>(), ["task_id=\"web\""], "{line:?}");
    }
}

/// The words of a line, as who searches it takes them: a quoted value is one word.
fn fields(line: &str) -> Vec<&str> {
    let (mut words, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                words.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    words.push(&line[start..]);
    words
}

//! Log lines of libraries: written to standard error, and bounded, because a guest can provoke them.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

use crate::report::note;

/// Most lines in one [`WINDOW`]; further lines are counted and left out.
pub const LINES_MAX: u32 = 20;
/// Time in which [`LINES_MAX`] is the most that is written.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Longest line, bytes; the rest is cut.
pub const LINE_BYTES_MAX: usize = 256;

/// Sends warnings and errors of libraries to standard error from now on.
pub fn install() {
    static LOG: LibraryLog = LibraryLog {
        budget: Mutex::new(Budget::NEW),
    };
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

struct LibraryLog {
    budget: Mutex<Budget>,
}

impl Log for LibraryLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        match budget.take(Instant::now()) {
            Take::No => {}
            Take::Yes { left_out: 0 } => note(&line(record)),
            Take::Yes { left_out } => {
                note(&format!("{left_out} log lines left out"));
                note(&line(record));
            }
        }
    }

    fn flush(&self) {}
}

/// The record as one line, whatever the message holds: names of files are the guest's choice.
fn line(record: &Record<'_>) -> String {
    let mut text = format!("{} {}: ", record.level(), record.target());
    // Writing to a String cannot fail.
    let _ = write!(text, "{}", record.args());
    let text = text.escape_debug().take(LINE_BYTES_MAX);
    text.filter(char::is_ascii).collect()
}

/// Count of the lines written and left out in the window that is running.
#[derive(Debug)]
struct Budget {
    window_start: Option<Instant>,
    written: u32,
    left_out: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Take {
    Yes { left_out: u64 },
    No,
}

impl Budget {
    const NEW: Self = Self {
        window_start: None,
        written: 0,
        left_out: 0,
    };

    fn take(&mut self, now: Instant) -> Take {
        let running = self
            .window_start
            .is_some_and(|start| now.saturating_duration_since(start) < WINDOW);
        if !running {
            self.window_start = Some(now);
            self.written = 0;
        }
        if self.written == LINES_MAX {
            self.left_out += 1;
            return Take::No;
        }
        self.written += 1;
        Take::Yes {
            left_out: std::mem::take(&mut self.left_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let (mut budget, now) = (Budget::NEW, Instant::now());
        let written = (0..1000).filter(|_| budget.take(now) != Take::No).count();
        assert_eq!(written, 20);
        assert_eq!(budget.take(now + WINDOW), Take::Yes { left_out: 980 });
        assert_eq!(budget.take(now + WINDOW), Take::Yes { left_out: 0 });
    }

    #[test]
    fn a_message_stays_one_line() {
        let name = format!("a\nb\u{1b}[31m\u{fc}{}", "x".repeat(1000));
        let record = line(&Record::builder().args(format_args!("{name}")).build());
        assert!(
            record.len() <= LINE_BYTES_MAX && record.contains("a\\nb\\u{1b}[31m"),
            "{record}"
        );
        assert!(
            record.chars().all(|c| c.is_ascii_graphic() || c == ' '),
            "{record}"
        );
    }
}

//! The guest's early-printk console: bytes go out and none come in.
//!
//! A panic's reason comes by the console and in no other way, so the console always takes the guest's bytes and
//! keeps the last of them. Every byte is the guest's: only printable text is kept, and live forwarding is bounded in
//! line length and in bytes per second.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmvm_protocol::control::CONSOLE_TAIL_BYTES_MAX;

/// Longest forwarded line, bytes; what follows goes to the next line.
pub const LINE_BYTES_MAX: usize = 512;
/// Most bytes forwarded in one [`FORWARD_WINDOW`]; the rest is only kept.
pub const FORWARD_BYTES_MAX: usize = 64 << 10;
/// Time in which [`FORWARD_BYTES_MAX`] is the most that is forwarded.
pub const FORWARD_WINDOW: Duration = Duration::from_secs(1);

/// A handle on the console; clones share one console.
#[derive(Clone, Debug)]
pub struct Console {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    tail: VecDeque<u8>,
    forward: Option<Forward>,
}

impl Console {
    /// A console that keeps its tail and, when asked, forwards whole lines to standard error.
    #[must_use]
    pub fn new(forward: bool) -> Self {
        let state = State {
            tail: VecDeque::with_capacity(CONSOLE_TAIL_BYTES_MAX),
            forward: forward.then(Forward::new),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The last [`CONSOLE_TAIL_BYTES_MAX`] bytes that the guest has printed, as text.
    #[must_use]
    pub fn tail(&self) -> String {
        self.lock()
            .tail
            .iter()
            .map(|byte| char::from(*byte))
            .collect()
    }

    /// Takes a byte that the guest prints.
    pub fn print(&self, byte: u8) {
        if let Some(line) = self.lock().print(byte) {
            // A closed standard error must not end the guest.
            let _closed = std::io::stderr().write_all(&line);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Keeps `byte`; returns a line when `byte` completes one that is to be forwarded.
    fn print(&mut self, byte: u8) -> Option<Vec<u8>> {
        let byte = match byte {
            b'\r' => return None,
            b'\n' | b'\t' | b' '..=b'~' => byte,
            _ => b'?',
        };
        if self.tail.len() == CONSOLE_TAIL_BYTES_MAX {
            self.tail.pop_front();
        }
        self.tail.push_back(byte);
        self.forward.as_mut()?.push(byte, Instant::now())
    }
}

/// The line that is being collected, and the bound on the bytes forwarded.
#[derive(Debug)]
struct Forward {
    line: Vec<u8>,
    window_start: Instant,
    window_bytes: usize,
    skipped_lines: u64,
}

impl Forward {
    fn new() -> Self {
        Self {
            line: Vec::with_capacity(LINE_BYTES_MAX),
            window_start: Instant::now(),
            window_bytes: 0,
            skipped_lines: 0,
        }
    }

    fn push(&mut self, byte: u8, now: Instant) -> Option<Vec<u8>> {
        if byte != b'\n' {
            self.line.push(byte);
        }
        if byte != b'\n' && self.line.len() < LINE_BYTES_MAX {
            return None;
        }
        if now.duration_since(self.window_start) >= FORWARD_WINDOW {
            self.window_start = now;
            self.window_bytes = 0;
        }
        let mut text = b"guest: ".to_vec();
        text.append(&mut self.line);
        text.push(b'\n');
        self.window_bytes += text.len();
        if self.window_bytes > FORWARD_BYTES_MAX {
            self.skipped_lines += 1;
            return None;
        }
        if self.skipped_lines > 0 {
            let note = format!("guest: ({} lines not shown)\n", self.skipped_lines);
            text.splice(0..0, note.into_bytes());
            self.skipped_lines = 0;
        }
        Some(text)
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    fn print(console: &Console, text: &[u8]) {
        for byte in text {
            console.print(*byte);
        }
    }

    #[test]
    fn only_printable_text_is_kept() {
        let console = Console::new(false);
        print(&console, b"ok\x1b[31m\xffred\r\n");
        assert_eq!(console.tail(), "ok?[31m?red\n");
    }

    #[test]
    fn the_tail_is_bounded() {
        let console = Console::new(false);
        print(&console, &[b'a'; CONSOLE_TAIL_BYTES_MAX]);
        print(&console, b"end");
        assert_eq!(console.tail().len(), CONSOLE_TAIL_BYTES_MAX);
        assert!(console.tail().ends_with("aend"));
    }

    #[test]
    fn forwarding_is_bounded_and_says_so() {
        let mut forward = Forward::new();
        let start = Instant::now();
        let mut shown = 0;
        for _ in 0..FORWARD_BYTES_MAX {
            shown += forward.push(b'\n', start).map_or(0, |line| line.len());
        }
        assert!(shown <= FORWARD_BYTES_MAX);
        let later = forward.push(b'\n', start + FORWARD_WINDOW).unwrap();
        assert!(
            String::from_utf8(later)
                .unwrap()
                .contains("lines not shown")
        );
    }
}

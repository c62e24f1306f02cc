//! The guest's early-printk console: a transmitter at I/O port 0x3f8 and nothing else.
//!
//! A panic's reason comes by the console and in no other way, so the console always takes the guest's bytes and
//! keeps the last of them. Every byte is the guest's: only printable text is kept, and live forwarding is bounded in
//! line length and in bytes per second.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmvm_protocol::control::CONSOLE_TAIL_BYTES_MAX;

/// First of the eight ports of the PC's first serial interface.
pub const PORT_FIRST: u16 = 0x3f8;
/// Last of the eight ports of the PC's first serial interface.
pub const PORT_LAST: u16 = 0x3ff;
/// Longest forwarded line, bytes; what follows goes to the next line.
pub const LINE_BYTES_MAX: usize = 512;
/// Most bytes forwarded in one [`FORWARD_WINDOW`]; the rest is only kept.
pub const FORWARD_BYTES_MAX: usize = 64 << 10;
/// Time in which [`FORWARD_BYTES_MAX`] is the most that is forwarded.
pub const FORWARD_WINDOW: Duration = Duration::from_secs(1);

/// Register offsets and bits of the 8250 that Linux's early printk uses (`early_printk.c`).
const TRANSMIT: u16 = 0;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
const DIVISOR_LATCH: u8 = 0x80;
const TRANSMITTER_EMPTY: u8 = 0x60;

/// A handle on the console; clones share one console.
#[derive(Clone, Debug)]
pub struct Console {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    line_control: u8,
    tail: VecDeque<u8>,
    forward: Option<Forward>,
}

impl Console {
    /// A console that keeps its tail and, when asked, forwards whole lines to standard error.
    #[must_use]
    pub fn new(forward: bool) -> Self {
        let state = State {
            line_control: 0,
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

    /// Carries out the guest's write of one byte to a port of the interface.
    pub fn port_write(&self, port: u16, byte: u8) {
        let mut state = self.lock();
        match port.wrapping_sub(PORT_FIRST) {
            TRANSMIT if state.line_control & DIVISOR_LATCH == 0 => {
                if let Some(line) = state.transmit(byte) {
                    // A closed standard error must not end the guest.
                    let _closed = std::io::stderr().write_all(&line);
                }
            }
            LINE_CONTROL => state.line_control = byte,
            _ => {}
        }
    }

    /// Carries out the guest's read of one byte from a port of the interface.
    #[must_use]
    pub fn port_read(&self, port: u16) -> u8 {
        match port.wrapping_sub(PORT_FIRST) {
            LINE_CONTROL => self.lock().line_control,
            LINE_STATUS => TRANSMITTER_EMPTY,
            _ => 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Keeps `byte`; returns a line when `byte` completes one that is to be forwarded.
    fn transmit(&mut self, byte: u8) -> Option<Vec<u8>> {
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
            console.port_write(PORT_FIRST, *byte);
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
    fn the_divisor_is_not_text() {
        let console = Console::new(false);
        console.port_write(PORT_FIRST + LINE_CONTROL, DIVISOR_LATCH | 3);
        print(&console, b"X");
        let control = console.port_read(PORT_FIRST + LINE_CONTROL);
        console.port_write(PORT_FIRST + LINE_CONTROL, control & !DIVISOR_LATCH);
        print(&console, b"Y");
        assert_eq!(console.tail(), "Y");
        assert_eq!(
            console.port_read(PORT_FIRST + LINE_STATUS),
            TRANSMITTER_EMPTY
        );
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

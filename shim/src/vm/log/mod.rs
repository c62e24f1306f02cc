//! Carries a VMM's standard error (its own messages and, if wanted, the guest's console) to the shim's log.
//! What a guest can provoke is bounded: in the length of a line and in lines per second.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// A longer line is cut into pieces of this length, bytes.
const LINE_BYTES_MAX: u64 = 1024;
/// Lines beyond this number are counted, not logged.
const LINES_PER_SECOND_MAX: u32 = 200;
const SECOND: Duration = Duration::from_secs(1);

/// Logs every line until the VMM has closed the pipe. `vm` names the VM in the log: the task's id, or the
/// compiler.
pub(super) async fn forward(reader: pipe::Receiver, vm: String) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut window = Window::new();
    loop {
        line.clear();
        let read = (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        if read == 0 {
            return Ok(());
        }
        match window.admit(Instant::now()) {
            Admission::Logged { dropped } => {
                if dropped > 0 {
                    tracing::warn!(vm, dropped, "vmm: lines beyond the rate limit were dropped");
                }
                tracing::info!(vm, "vmm: {}", printable(&line));
            }
            Admission::Dropped => {}
        }
    }
}

/// Counts lines per second.
#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    dropped: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Admission {
    /// The line is logged, after `dropped` lines that were not.
    Logged {
        dropped: u32,
    },
    Dropped,
}

impl Window {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            lines: 0,
            dropped: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> Admission {
        if now.duration_since(self.since) >= SECOND {
            self.since = now;
            self.lines = 0;
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > LINES_PER_SECOND_MAX {
            self.dropped = self.dropped.saturating_add(1);
            return Admission::Dropped;
        }
        Admission::Logged {
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

/// The line without its end and without anything that could steer a terminal.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end()
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_not_logged() {
        let mut window = Window::new();
        let start = window.since;
        for _ in 0..LINES_PER_SECOND_MAX {
            assert_eq!(window.admit(start), Admission::Logged { dropped: 0 });
        }
        assert_eq!(window.admit(start), Admission::Dropped);
        assert_eq!(window.admit(start), Admission::Dropped);
        assert_eq!(
            window.admit(start + SECOND),
            Admission::Logged { dropped: 2 }
        );
    }

    #[test]
    fn a_guest_cannot_steer_a_terminal() {
        assert_eq!(printable(b"\x1b[2Jhello\r\n"), "\u{fffd}[2Jhello");
    }
}

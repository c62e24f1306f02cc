//! A guest that prints anything, by any port.

use arbitrary::{Result, Unstructured};

use super::*;
use crate::arch::Serial;
use crate::arch::x86_64::serial::{PORT_FIRST, PORT_LAST};

/// The tail is plain text within its bound; a line that is forwarded is one line within its.
pub fn console(input: &[u8]) {
    let _used_up = print(&mut Unstructured::new(input));
}

fn print(u: &mut Unstructured<'_>) -> Result<()> {
    let console = Console::new(false);
    let mut serial = Serial::new(console.clone());
    let mut forward = Forward::new();
    let mut now = Instant::now();
    while !u.is_empty() {
        let byte = u.arbitrary()?;
        let port = if u.ratio(1, 16)? {
            u.int_in_range(PORT_FIRST..=PORT_LAST)?
        } else {
            PORT_FIRST
        };
        // One byte may be said many times: a tail and a window are filled by no input otherwise.
        for _ in 0..=u.arbitrary::<u32>()? >> u.int_in_range(18..=31)? {
            serial.write(port, byte);
            let _register = serial.read(port);
            let Some(line) = forward.push(byte, now) else {
                continue;
            };
            assert!(line.ends_with(b"\n"), "{line:?}");
            assert!(
                line.len() <= 2 * LINE_BYTES_MAX,
                "{} bytes in a line",
                line.len()
            );
            assert!(forward.window_bytes <= FORWARD_BYTES_MAX);
        }
        now += Duration::from_millis(u.arbitrary::<u8>()?.into());
    }
    let tail = console.tail();
    assert!(tail.len() <= CONSOLE_TAIL_BYTES_MAX, "{}", tail.len());
    assert!(
        tail.chars()
            .all(|c| c.is_ascii_graphic() || " \n\t".contains(c))
    );
    crate::report::fuzz::tail_fits_a_message(&tail);
    Ok(())
}

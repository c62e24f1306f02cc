//! The serial interface of the guest's early-printk console: a transmitter at I/O port 0x3f8 and nothing else.

use crate::console::Console;

/// First of the eight ports of the PC's first serial interface.
pub const PORT_FIRST: u16 = 0x3f8;
/// Last of the eight ports of the PC's first serial interface.
pub const PORT_LAST: u16 = 0x3ff;

/// Register offsets and bits of the 8250 that Linux's early printk uses (`early_printk.c`).
const TRANSMIT: u16 = 0;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
const DIVISOR_LATCH: u8 = 0x80;
const TRANSMITTER_EMPTY: u8 = 0x60;

/// A serial interface by which the guest prints to the console.
#[derive(Debug)]
pub struct Serial {
    console: Console,
    line_control: u8,
}

impl Serial {
    /// A serial interface at reset.
    #[must_use]
    pub fn new(console: Console) -> Self {
        Self {
            console,
            line_control: 0,
        }
    }

    /// Carries out the guest's write of one byte to a port of the interface.
    pub fn write(&mut self, port: u16, byte: u8) {
        match port.wrapping_sub(PORT_FIRST) {
            TRANSMIT if self.line_control & DIVISOR_LATCH == 0 => self.console.print(byte),
            LINE_CONTROL => self.line_control = byte,
            _ => {}
        }
    }

    /// Carries out the guest's read of one byte from a port of the interface.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        match port.wrapping_sub(PORT_FIRST) {
            LINE_CONTROL => self.line_control,
            LINE_STATUS => TRANSMITTER_EMPTY,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divisor_is_not_text() {
        let console = Console::new(false);
        let mut serial = Serial::new(console.clone());
        serial.write(PORT_FIRST + LINE_CONTROL, DIVISOR_LATCH | 3);
        serial.write(PORT_FIRST, b'X');
        let control = serial.read(PORT_FIRST + LINE_CONTROL);
        serial.write(PORT_FIRST + LINE_CONTROL, control & !DIVISOR_LATCH);
        serial.write(PORT_FIRST, b'Y');
        assert_eq!(console.tail(), "Y");
        assert_eq!(serial.read(PORT_FIRST + LINE_STATUS), TRANSMITTER_EMPTY);
    }
}

//! The size of a terminal.

/// The size of a terminal in characters, as `struct winsize` (linux/termios.h) holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

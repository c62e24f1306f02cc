//! The size of a terminal, as a request of containerd asks for it.

/// The size of a terminal in characters, as `struct winsize` (linux/termios.h) holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    /// Width in columns, `ws_col` of the struct.
    pub width: u16,
    /// Height in rows, `ws_row` of the struct.
    pub height: u16,
}

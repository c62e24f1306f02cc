//! A line of the guest's console.

use super::*;

/// Logs one line as `forward` does.
pub(crate) fn console_line(vm: &str, line: &[u8]) {
    tracing::info!(vm, "vmm: {}", printable(line));
}

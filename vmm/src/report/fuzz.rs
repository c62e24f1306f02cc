//! The last words of a guest.

use wasmvm_protocol::control::CONTROL_BYTES_MAX;

use super::*;

/// Any text's end, beside the longest reason, fits one message to the shim.
pub fn console_tail(input: &[u8]) {
    tail_fits_a_message(&String::from_utf8_lossy(input));
}

/// As [`console_tail`], for a text.
pub(crate) fn tail_fits_a_message(console: &str) {
    let console_tail = super::console_tail(console);
    assert!(console_tail.len() <= CONSOLE_TAIL_BYTES_MAX);
    let message = FromVmm::GuestEnded {
        reason: "\"".repeat(REASON_BYTES_MAX),
        console_tail,
    };
    let encoded = serde_json::to_vec(&message).map(|bytes| bytes.len());
    assert!(encoded.is_ok_and(|bytes| bytes <= CONTROL_BYTES_MAX));
}

//! What a VMM says, that a guest may have taken over.

use super::answers::fuzz::answers;
pub(crate) use super::log::fuzz::console_line;

/// Only answers that are waited for are kept, and nobody is left waiting in the table.
pub fn vm_answers(input: &[u8]) {
    answers(input);
}

//! SHA-256: of what a file holds, and in the digits of a file name.

use std::fmt::Write as _;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// Read at once, bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// The digest and the number of the bytes that `source` holds from its position on.
///
/// # Errors
/// `read(2)`'s.
pub(crate) fn digest_of_rest(mut source: impl Read) -> io::Result<([u8; 32], u64)> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok((digest.finalize().into(), bytes)),
            Ok(n) => {
                digest.update(&chunk[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Two lower-case digits for each byte.
#[must_use]
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

//! Lines of `/proc/self/mountinfo`.

use std::os::unix::ffi::OsStrExt as _;

use super::*;

/// Each line is a mount or none; an escaped path is never longer than it was; what the kernel escapes
/// comes back as it was.
pub(crate) fn lines(text: &[u8]) {
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(mount) = parse(line) {
            assert!(mount.point.as_os_str().len() <= line.len());
        }
        assert!(unescape(line).as_os_str().len() <= line.len());
        let escaped: Vec<u8> = line.iter().flat_map(|byte| escape(*byte)).collect();
        assert_eq!(unescape(&escaped).as_os_str().as_bytes(), line);
    }
}

/// As `mangle` of Linux's `fs/seq_file.c` does.
fn escape(byte: u8) -> Vec<u8> {
    match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![byte],
    }
}

//! The home directory of a program's user, by the tree's `/etc/passwd` (passwd(5)).
//!
//! The file is the image's and so as hostile as the program: it is opened inside the tree and must be a
//! regular file, and only a bounded part of it is read, a bounded line at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::bundle::ProcessSpec;
use crate::tree::open_inside;

/// Path of the list of users inside the tree.
const PASSWD: &str = "/etc/passwd";
/// The home directory of a user that the tree does not know, as runc has it.
const HOME_DEFAULT: &str = "/";
/// Most of the list that is read, bytes.
const PASSWD_BYTES_MAX: u64 = 1 << 20;
/// Longest line of the list that counts, bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// The value that `HOME` gets; `None` when the spec sets `HOME`.
pub(super) fn of(root: BorrowedFd<'_>, spec: &ProcessSpec) -> Option<String> {
    let set = |entry: &String| entry.len() > "HOME=".len() && entry.starts_with("HOME=");
    if spec.env.iter().any(set) {
        return None;
    }
    let listed = open(root).and_then(|file| listed(file, spec.user.uid));
    let home = listed.unwrap_or_else(|error| {
        tracing::debug!(uid = spec.user.uid, %error, "no home directory in {PASSWD}");
        None
    });
    Some(home.unwrap_or_else(|| HOME_DEFAULT.to_owned()))
}

/// Opens the list; never waits for the other end of a FIFO.
fn open(root: BorrowedFd<'_>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open_inside(root, Path::new(PASSWD), flags)?);
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(io::Error::other("it is not a regular file")),
    }
}

/// The home directory in the first line of this user.
fn listed(passwd: impl Read, uid: u32) -> io::Result<Option<String>> {
    let mut passwd = BufReader::new(passwd.take(PASSWD_BYTES_MAX));
    let mut line = Vec::new();
    let mut at_start = true;
    loop {
        line.clear();
        let mut bounded = passwd.by_ref().take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let ended = line.ends_with(b"\n");
        // The parts of a line beyond the bound are no lines of their own.
        if at_start
            && (ended || bounded.limit() > 0)
            && let Some(found) = home_in(&line, uid)
        {
            return Ok(Some(found).filter(|home| !home.is_empty()));
        }
        at_start = ended;
    }
}

/// `name:password:uid:gid:comment:home:shell`; `None` for another user's line, or none at all.
fn home_in(line: &[u8], uid: u32) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.trim();
    let mut fields = line.split(':');
    let listed: u32 = fields.nth(2)?.parse().ok()?;
    let home = fields.nth(2)?;
    (listed == uid && !home.contains('\0')).then(|| home.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(passwd: &[u8], uid: u32) -> Option<String> {
        listed(passwd, uid).unwrap()
    }

    #[test]
    fn the_first_line_of_a_user_counts() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n\n# app:x:7:7::/not/this:\n\
            app:x:7:7:An App:/srv/app\nagain:x:7:7::/later:\nbare:x:8:8:::\nlast:x:9:9::/last:";
        assert_eq!(home(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home(passwd, 9).as_deref(), Some("/last"));
        assert_eq!(home(passwd, 8), None, "an empty home is none");
        assert_eq!(home(passwd, 1000), None);
    }

    #[test]
    fn what_is_no_line_of_passwd_is_passed_over() {
        let passwd = b"root\n0:0:0\n:::::\nx:x:x:0::/x:\n\xff:x:0:0::/bytes:\nz:x:0:0::/a\0b:\n\
            +::::::\nr:x:0:0::/right:";
        assert_eq!(home(passwd, 0).as_deref(), Some("/right"));
        assert_eq!(home(b"", 0), None);
    }

    #[test]
    fn long_lines_and_long_files_are_bounded() {
        let line_max = usize::try_from(LINE_BYTES_MAX).unwrap();
        let mut passwd = vec![b'a'; line_max];
        passwd.extend(b"r:x:0:0::/tail:\nr:x:0:0::/line:\n");
        assert_eq!(home(&passwd, 0).as_deref(), Some("/line"));
        let mut passwd = vec![b'\n'; usize::try_from(PASSWD_BYTES_MAX).unwrap()];
        passwd.extend(b"r:x:0:0::/beyond:\n");
        assert_eq!(home(&passwd, 0), None);
    }
}

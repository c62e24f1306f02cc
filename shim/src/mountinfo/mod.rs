//! The calling thread's mounts, from `/proc/thread-self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxFlags};
use wasmvm_protocol::tree::is_kernel_file_system;

/// Longest list that is read, bytes: a node with ten thousand mounts has about two million.
const MOUNTINFO_BYTES_MAX: u64 = 64 << 20;

/// A mount of the thread's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel's number of the mount, unique while the mount exists.
    pub id: u64,
    /// The number of the mount that this one is mounted on.
    pub parent: u64,
    /// Mount point, seen from the thread's root.
    pub point: PathBuf,
    /// The type of the file system, as in `ext4`.
    pub kind: String,
}

impl Mount {
    /// Whether the mount's files are an interface to the host's kernel, by the type of the file system.
    #[must_use]
    pub(crate) fn is_kernels(&self) -> bool {
        is_kernel_file_system(&self.kind)
    }
}

/// Every mount of the calling thread's namespace.
///
/// # Errors
/// The error of reading the file, or [`io::ErrorKind::Other`] for a line that is not as proc(5) has it.
pub(crate) fn read() -> io::Result<Vec<Mount>> {
    let mut text = Vec::new();
    std::fs::File::open("/proc/thread-self/mountinfo")
        .and_then(|file| file.take(MOUNTINFO_BYTES_MAX).read_to_end(&mut text))?;
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                io::Error::other(format!(
                    "/proc/thread-self/mountinfo: cannot read the line {line:?}"
                ))
            })
        })
        .collect()
}

/// Parses a line: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let point = unescape(fields.nth(2)?);
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        id,
        parent,
        point,
        kind,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Decodes a path, in which space, tab, newline and backslash are written as three octal digits.
#[must_use]
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

/// The mount that a descriptor's file lies on.
///
/// # Errors
/// `statx(2)`'s, and one on a kernel before Linux 5.12, which gives no mount ids.
pub(crate) fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::other(
            "the kernel gives no mount ids; Linux 5.12 or newer is needed",
        ));
    }
    Ok(stat.stx_mnt_id)
}

/// The mounts below `top`, parents before children; not `top` itself.
#[must_use]
pub(crate) fn below(mounts: &[Mount], top: u64) -> Vec<&Mount> {
    let mut found: Vec<&Mount> = Vec::new();
    let mut wanted = vec![top];
    while let Some(parent) = wanted.pop() {
        for mount in mounts
            .iter()
            .filter(|mount| mount.parent == parent && mount.id != parent)
        {
            wanted.push(mount.id);
            found.push(mount);
        }
    }
    found
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_of_the_manual_is_understood() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!(mount.point, PathBuf::from("/mnt 2"));
        assert_eq!(mount.kind, "ext3");
        assert_eq!(parse(b"36 35 98:0 / /x rw"), None);
    }

    #[test]
    fn this_machines_mounts_are_understood() {
        let mounts = read().unwrap();
        let proc = mounts
            .iter()
            .find(|mount| mount.point == Path::new("/proc"))
            .unwrap();
        assert_eq!(proc.kind, "proc");
        assert!(proc.is_kernels());
        let file = std::fs::File::open("/proc").unwrap();
        assert!(
            mounts
                .iter()
                .any(|m| m.id == mount_id(&file).unwrap() && m.kind == "proc")
        );
    }

    #[test]
    fn an_odd_escape_is_kept() {
        assert_eq!(unescape(br"a\9b\"), PathBuf::from(r"a\9b\"));
        assert_eq!(unescape(br"\134\012"), PathBuf::from("\\\n"));
    }
}

//! Landlock, where the host has it: bounds on what the tree as root and the lists of system calls leave open.
//!
//! - The descriptors that the VMM keeps lead out of the tree: `/proc/self/fd` has the executable's, the
//!   kernel's and the initramfs's files beside it. With a ruleset no file outside of the tree is opened, whichever
//!   way leads there.
//! - No program, device, socket or pipe is made or run in the tree, and no device's ioctl called.
//! - No TCP, no abstract Unix socket of others, no signal to a process outside.
//!
//! Each bound is as far as the host's version goes (Linux Documentation/userspace-api/landlock.rst,
//! `include/uapi/linux/landlock.h`). Version 1 is left alone: it forbids every rename and link from one
//! directory to another, which tenants need.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::syscalls::{
    Ruleset, landlock_allow_below, landlock_create, landlock_restrict_self, landlock_version,
};

/// `LANDLOCK_ACCESS_FS_*` of version 2, in the header's order, and two of later versions.
const EXECUTE_AND_ALL_OF_VERSION_2: u64 = (1 << 14) - 1;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEVICE: u64 = 1 << 15;
/// Access refused in the tree too: executing; making character devices, sockets, pipes, block devices; ioctls of
/// devices.
const REFUSED: u64 = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | IOCTL_DEVICE;
/// Rights to TCP: `LANDLOCK_ACCESS_NET_BIND_TCP` and `LANDLOCK_ACCESS_NET_CONNECT_TCP`.
const TCP: u64 = 1 << 0 | 1 << 1;
/// Scopes that are closed: `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`.
const OUTSIDE: u64 = 1 << 0 | 1 << 1;

/// The version of Landlock that the host's kernel offers; from 2 on it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landlock {
    /// Version of the interface; 0 for none.
    version: u32,
}

impl Landlock {
    /// Whether files outside of the tree are out of reach.
    #[must_use]
    pub fn holds_files(self) -> bool {
        self.version >= 2
    }
}

impl fmt::Display for Landlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version;
        match version {
            0 => f.write_str("the host has no Landlock: the jail does without"),
            1 => f.write_str("the host's Landlock is too old (version 1): the jail does without"),
            2 | 3 => write!(f, "Landlock version {version}: files"),
            4 | 5 => write!(f, "Landlock version {version}: files, TCP"),
            _ => write!(
                f,
                "Landlock version {version}: files, TCP, sockets, signals"
            ),
        }
    }
}

impl Ruleset {
    fn of(version: u32) -> Self {
        let from = |first, rights| if version >= first { rights } else { 0 };
        Self {
            files: EXECUTE_AND_ALL_OF_VERSION_2 | from(3, TRUNCATE) | from(5, IOCTL_DEVICE),
            network: from(4, TCP),
            scoped: from(6, OUTSIDE),
        }
    }
}

/// Restricts this thread, and those it will start, to the files below `root`, or to none. Needs "no new privileges".
pub(super) fn restrict(root: Option<&Path>) -> io::Result<Landlock> {
    let landlock = Landlock {
        version: landlock_version(),
    };
    if !landlock.holds_files() {
        return Ok(landlock);
    }
    let wanted = Ruleset::of(landlock.version);
    let ruleset = landlock_create(&wanted)?;
    if let Some(root) = root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        landlock_allow_below(&ruleset, &root, wanted.files & !REFUSED)?;
    }
    landlock_restrict_self(&ruleset)?;
    Ok(landlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use rustix::fs::{FileType, mknodat};

    #[test]
    fn nothing_is_asked_for_that_a_version_does_not_know() {
        let asked = |version| {
            let ruleset = Ruleset::of(version);
            (ruleset.files, ruleset.network, ruleset.scoped)
        };
        assert_eq!(asked(2), (0x3fff, 0, 0));
        assert_eq!(asked(3), (0x7fff, 0, 0));
        assert_eq!(asked(4), (0x7fff, 3, 0));
        assert_eq!(asked(6), (0xffff, 3, 3));
        assert_eq!(asked(9), asked(6));
    }

    #[test]
    fn without_a_root_no_file_is_left() {
        rustix::thread::set_no_new_privs(true).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let landlock = restrict(None).unwrap();
        assert_eq!(File::open(file.path()).is_ok(), !landlock.holds_files());
    }

    /// A thread's restriction ends with it. Where the host has no Landlock, all stays possible.
    #[test]
    fn files_are_served_below_the_root_and_nowhere_else() {
        rustix::thread::set_no_new_privs(true).unwrap();
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::create_dir(at("b")).unwrap();
        let outside = File::open("/proc/self/exe").unwrap();
        let landlock = restrict(Some(tree.path())).unwrap();
        println!("{landlock}");
        fs::write(at("a/file"), "x").unwrap();
        fs::rename(at("a/file"), at("b/moved")).unwrap();
        fs::hard_link(at("b/moved"), at("a/linked")).unwrap();
        File::create(at("b/moved")).unwrap();
        std::os::unix::fs::symlink("b", at("link")).unwrap();
        assert_eq!(fs::read_dir(at("a")).unwrap().count(), 1);
        fs::remove_dir_all(at("b")).unwrap();
        let open = |path: &str| File::open(path).is_ok();
        let make = |kind| mknodat(CWD, at("special"), kind, Mode::RWXU, 0).is_ok();
        let by_descriptor = format!("/proc/self/fd/{}", outside.as_raw_fd());
        let reached = [
            open("/etc/passwd"),
            open(&by_descriptor),
            make(FileType::Fifo),
        ];
        assert_eq!(reached, [!landlock.holds_files(); 3], "{landlock}");
    }
}

//! Reads back the properties that the jail should have. A kernel, a shim or a change here that does less than
//! expected ends the VMM before a guest runs.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use wasmvm_protocol::control::Credentials;
use wasmvm_protocol::tree::is_kernel_file_system;

use super::limits::CORE_BYTES;
use super::privileges::kept;
use super::{JailError, Landlock, Step, inherited};

/// Longest file of /proc/self that is read here, bytes.
const PROC_FILE_BYTES_MAX: u64 = 1 << 20;

/// Checks every property. `place` is a field of the process's status and the field's required value.
pub(super) fn all(
    proc_root: &OwnedFd,
    credentials: &Credentials,
    place: (&'static str, &str),
) -> Result<(), JailError> {
    status(&read(proc_root, "self/status")?, credentials, place)?;
    let map = "0 0 4294967295";
    for name in ["self/uid_map", "self/gid_map"] {
        same("identity map", &words(&read(proc_root, name)?), map)?;
    }
    same(
        "root",
        &mounts_in_sight(&read(proc_root, "self/mountinfo")?),
        "the file tree",
    )?;
    let writable = inherited::writable(proc_root).step("look at the inherited files")?;
    same(
        "files of the host on a mount that can be written to",
        &writable,
        &Vec::<String>::new(),
    )?;
    let core = getrlimit(Resource::Core);
    let core = core.maximum.map(|bytes| bytes.max(CORE_BYTES));
    same("limit of core files", &core, &Some(CORE_BYTES))?;
    let dumpable = dumpable_behavior().step("read whether memory can be dumped")?;
    same("dumpable", &dumpable, &DumpableBehavior::NotDumpable)
}

/// Checks that no directory is above the root, before the process becomes a user who may not enter one.
pub(super) fn root_is_the_end() -> Result<(), JailError> {
    same("parent of the root", &mount_of("..")?, &mount_of("/")?)
}

/// Checks that Landlock works: the VMM's executable, which is always in /proc, cannot be opened.
pub(super) fn executable_out_of_reach(
    proc_self_fd: &OwnedFd,
    landlock: Landlock,
) -> Result<(), JailError> {
    if !landlock.holds_files() {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(proc_self_fd, "../exe", flags, Mode::empty());
    same(
        "the VMM's own executable, opened",
        &opened.err(),
        &Some(rustix::io::Errno::ACCESS),
    )
}

/// Checks the fields of /proc/PID/status (`proc(5)`) that say what this process may do.
fn status(
    text: &str,
    credentials: &Credentials,
    place: (&'static str, &str),
) -> Result<(), JailError> {
    let kept = format!("{:016x}", kept(credentials).bits());
    let none = format!("{:016x}", 0);
    let four = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
    let (uid, gid) = (four(credentials.uid), four(credentials.gid));
    let mut groups = credentials.groups.clone();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = groups.join(" ");
    let meant = [
        ("CapInh", none.as_str()),
        ("CapPrm", kept.as_str()),
        ("CapEff", kept.as_str()),
        ("CapBnd", kept.as_str()),
        ("CapAmb", none.as_str()),
        ("NoNewPrivs", "1"),
        ("Uid", uid.as_str()),
        ("Gid", gid.as_str()),
        ("Groups", groups.as_str()),
        place,
        ("Threads", "1"),
        ("Umask", "0000"),
    ];
    for (field, value) in meant {
        same(field, &words(status_field(text, field)), value)?;
    }
    Ok(())
}

fn status_field<'a>(text: &'a str, field: &str) -> &'a str {
    let line = |line: &'a str| line.strip_prefix(field)?.strip_prefix(':');
    text.lines().find_map(line).unwrap_or("(no such field)")
}

/// The mounts that can be reached are the tree and the mounts below it; none may show the
/// host's kernel (`proc(5)`, mountinfo: the type stands after " - ").
fn mounts_in_sight(mountinfo: &str) -> String {
    let forbidden = mountinfo.lines().find(|line| {
        let fs_type = line
            .split_once(" - ")
            .and_then(|(_, rest)| rest.split(' ').next());
        fs_type.is_none_or(is_kernel_file_system)
    });
    forbidden.unwrap_or("the file tree").to_owned()
}

fn mount_of(path: &str) -> Result<(u64, u64), JailError> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), mask);
    stat.map(|stat| (stat.stx_mnt_id, stat.stx_ino))
        .step("look at the root")
}

fn read(proc_root: impl AsFd, name: &str) -> Result<String, JailError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc_root, name, flags, Mode::empty()).step("open /proc/self")?;
    let mut text = String::new();
    let mut limited = File::from(file).take(PROC_FILE_BYTES_MAX);
    limited.read_to_string(&mut text).step("read /proc/self")?;
    Ok(text)
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn same<T, U>(what: &'static str, found: &T, meant: &U) -> Result<(), JailError>
where
    T: std::fmt::Debug + PartialEq<U> + ?Sized,
    U: std::fmt::Debug + ?Sized,
{
    if found == meant {
        return Ok(());
    }
    Err(JailError::NotAsMeant {
        what,
        found: format!("{found:?}"),
        meant: format!("{meant:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\twasmvm-vmm\nUmask:\t0000\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n\
        Groups:\t \nNSpid:\t1\nThreads:\t1\nCapInh:\t0000000000000000\nCapPrm:\t00000000000000db\n\
        CapEff:\t00000000000000db\nCapBnd:\t00000000000000db\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\n";

    const PLACE: (&str, &str) = ("NSpid", "1");

    fn six() -> Credentials {
        Credentials {
            capabilities: 0xdb,
            ..Credentials::default()
        }
    }

    #[test]
    fn a_status_as_meant_passes() {
        status(GOOD, &six(), PLACE).unwrap();
    }

    #[test]
    fn a_user_and_groups_as_meant_pass() {
        let credentials = Credentials {
            uid: 1000,
            gid: 100,
            groups: vec![2000, 7],
            ..Credentials::default()
        };
        let text = GOOD
            .replace("00000000000000db", "0000000000000000")
            .replace("Uid:\t0\t0\t0\t0", "Uid:\t1000\t1000\t1000\t1000")
            .replace("Gid:\t0\t0\t0\t0", "Gid:\t100\t100\t100\t100")
            .replace("Groups:\t ", "Groups:\t7 2000 ");
        status(&text, &credentials, PLACE).unwrap();
        assert!(status(&text, &six(), PLACE).is_err());
    }

    #[test]
    fn one_capability_too_many_is_named() {
        let more = GOOD.replace("CapBnd:\t00000000000000db", "CapBnd:\t00000000000001db");
        let error = status(&more, &six(), PLACE).unwrap_err().to_string();
        assert!(error.contains("CapBnd") && error.contains("1db"), "{error}");
        let missing = GOOD.replace("NoNewPrivs", "Other");
        assert!(
            status(&missing, &six(), PLACE)
                .unwrap_err()
                .to_string()
                .contains("no such field")
        );
    }

    #[test]
    fn a_window_on_the_kernel_is_named() {
        let tree = "29 1 8:1 / / ro,nosuid - overlay overlay ro,lowerdir=/a\n";
        assert_eq!(mounts_in_sight(tree), "the file tree");
        let more = format!("{tree}30 29 0:5 / /p rw - proc proc rw\n");
        assert!(mounts_in_sight(&more).contains("/p"));
        let more = format!("{tree}31 29 0:6 / /n rw - nsfs nsfs rw\n");
        assert!(mounts_in_sight(&more).contains("/n"));
    }
}

//! Paths as the operating system resolves them for an ordinary process.
//!
//! This is what [`WasiCtxBuilder::process_paths`] turns on: `..` and symbolic
//! links lead where they lead for the process itself, across mounts and up to
//! the root of the process. It's meant for embedders that confine the whole
//! process (`chroot`, a container, a virtual machine) and run one program in
//! it.
//!
//! Links of `procfs` that are no text ("magic links": `/proc/PID/exe`, `root`,
//! `cwd`, `fd/N`) are never followed, as they belong to the embedder's process
//! and not to the program. The one exception is `/proc/self/fd/N`, which is
//! taken for the *program's* descriptor `N`, see [`own_descriptor`].
//!
//! [`WasiCtxBuilder::process_paths`]: crate::WasiCtxBuilder::process_paths

use crate::filesystem::primitives::{self, Metadata, MetadataExt};
use crate::filesystem::{DescriptorFlags, DescriptorType, ErrorCode, OpenFlags, OpenMode};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, StatxFlags, Timespec,
    Timestamps, UTIME_OMIT, fstatfs, linkat, makedev, mkdirat, openat2, readlinkat, renameat,
    statat, statx, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Most symbolic links on one way, as in Linux (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// `f_type` of `procfs` (`linux/magic.h`).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// Files of a process's directory in `procfs` that show or change the memory
/// of the embedder.
const MEMORY_FILES: [&str; 9] = [
    "auxv",
    "maps",
    "mem",
    "numa_maps",
    "pagemap",
    "smaps",
    "smaps_rollup",
    "stack",
    "syscall",
];

/// The kernel's resolution of `path`, from `start`, with these flags.
fn resolve(start: &File, path: &Path, flags: OFlags, mode: Mode) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC;
    loop {
        match openat2(start, path, flags, mode, ResolveFlags::NO_MAGICLINKS) {
            Ok(fd) => return Ok(fd.into()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Paths of WASI are relative to a descriptor.
fn check(path: &Path) -> io::Result<()> {
    if path.has_root() {
        return Err(primitives::errors::escape_attempt());
    }
    Ok(())
}

/// The directory that holds the last component of a path, and that component
/// with the slashes that follow it, which the kernel gives a meaning to.
enum Parent<'a> {
    Start(&'a File),
    Opened(File),
}

impl Parent<'_> {
    fn file(&self) -> &File {
        match self {
            Parent::Start(file) => file,
            Parent::Opened(file) => file,
        }
    }
}

fn parent<'a>(start: &'a File, path: &'a Path) -> io::Result<(Parent<'a>, &'a Path)> {
    check(path)?;
    let bytes = path.as_os_str().as_bytes();
    let end = bytes
        .iter()
        .rposition(|&b| b != b'/')
        .map_or(0, |at| at + 1);
    let Some(slash) = bytes[..end].iter().rposition(|&b| b == b'/') else {
        return Ok((Parent::Start(start), path));
    };
    let (dir, name) = bytes.split_at(slash + 1);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dir = resolve(start, OsStr::from_bytes(dir).as_ref(), flags, Mode::empty())?;
    Ok((Parent::Opened(dir), OsStr::from_bytes(name).as_ref()))
}

fn has_trailing_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// How a file is to be opened.
#[derive(Clone, Copy)]
pub(crate) struct OpenHow {
    pub flags: DescriptorFlags,
    pub oflags: OpenFlags,
    pub follow: bool,
}

impl OpenHow {
    fn oflags(self) -> OFlags {
        let read = self.flags.contains(DescriptorFlags::READ);
        let mut oflags = match (read, self.flags.contains(DescriptorFlags::WRITE)) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (_, false) => OFlags::RDONLY,
        };
        oflags.set(OFlags::CREATE, self.oflags.contains(OpenFlags::CREATE));
        oflags.set(OFlags::EXCL, self.oflags.contains(OpenFlags::EXCLUSIVE));
        oflags.set(OFlags::TRUNC, self.oflags.contains(OpenFlags::TRUNCATE));
        oflags.set(
            OFlags::DIRECTORY,
            self.oflags.contains(OpenFlags::DIRECTORY),
        );
        oflags.set(OFlags::NOFOLLOW, !self.follow);
        if self.flags.contains(DescriptorFlags::DATA_INTEGRITY_SYNC) {
            oflags |= OFlags::DSYNC;
        }
        if self.flags.contains(DescriptorFlags::FILE_INTEGRITY_SYNC) {
            oflags |= OFlags::SYNC;
        }
        if self.flags.contains(DescriptorFlags::REQUESTED_WRITE_SYNC) {
            oflags |= OFlags::RSYNC;
        }
        // A terminal that a program opens is never to become that of the
        // embedder.
        oflags | OFlags::NOCTTY
    }

    pub fn open_mode(self) -> OpenMode {
        let mut mode = OpenMode::empty();
        let write = self.flags.contains(DescriptorFlags::WRITE);
        mode.set(OpenMode::WRITE, write);
        let read = self.flags.contains(DescriptorFlags::READ);
        mode.set(OpenMode::READ, read || !write);
        mode
    }

    fn mode(self) -> Mode {
        if self.oflags.contains(OpenFlags::CREATE) {
            Mode::from_raw_mode(0o666)
        } else {
            Mode::empty()
        }
    }
}

/// Opens a file and says whether it's a directory.
pub(crate) fn open(start: &File, path: &Path, how: OpenHow) -> io::Result<(File, bool)> {
    check(path)?;
    checked(resolve(start, path, how.oflags(), how.mode())?)
}

/// Opens anew what the program has open.
pub(crate) fn reopen(file: &File, how: OpenHow) -> io::Result<(File, bool)> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let oflags = how.oflags().difference(OFlags::NOFOLLOW) | OFlags::CLOEXEC;
    checked(rustix::fs::open(path, oflags, how.mode())?.into())
}

fn checked(file: File) -> io::Result<(File, bool)> {
    let (device, type_) = what(&file)?;
    if Some(device) == proc_device() && shows_memory(&file) {
        return Err(Errno::ACCESS.into());
    }
    Ok((file, type_ == FileType::Directory))
}

/// Device number and type of an open file: what never changes, so that a file
/// system over a network, or another one that has to ask, isn't asked.
fn what(file: &File) -> io::Result<(u64, FileType)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, "", flags, StatxFlags::TYPE)?;
    let type_ = FileType::from_raw_mode(RawMode::from(stat.stx_mode));
    Ok((makedev(stat.stx_dev_major, stat.stx_dev_minor), type_))
}

/// The device number of `/proc`, if one is mounted.
fn proc_device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| Some(statat(CWD, "/proc/self/fd", AtFlags::empty()).ok()?.st_dev))
}

fn shows_memory(file: &File) -> bool {
    let Ok(path) = descriptor_link(file.as_raw_fd()) else {
        return true;
    };
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    MEMORY_FILES.iter().any(|each| each.as_bytes() == name)
}

pub(crate) fn stat(start: &File, path: &Path, follow: bool) -> io::Result<Metadata> {
    check(path)?;
    // A single name that isn't followed needs no descriptor.
    if !follow && !path.as_os_str().is_empty() && !path.as_os_str().as_bytes().contains(&b'/') {
        return primitives::stat_unchecked(start, path, primitives::FollowSymlinks::No);
    }
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, !follow);
    Metadata::from_file(&resolve(start, path, flags, Mode::empty())?)
}

pub(crate) fn create_dir(start: &File, path: &Path) -> io::Result<()> {
    let (dir, name) = parent(start, path)?;
    Ok(mkdirat(dir.file(), name, Mode::from_raw_mode(0o777))?)
}

pub(crate) fn remove_dir(start: &File, path: &Path) -> io::Result<()> {
    let (dir, name) = parent(start, path)?;
    Ok(unlinkat(dir.file(), name, AtFlags::REMOVEDIR)?)
}

pub(crate) fn remove_file(start: &File, path: &Path) -> io::Result<()> {
    let (dir, name) = parent(start, path)?;
    Ok(unlinkat(dir.file(), name, AtFlags::empty())?)
}

pub(crate) fn rename(
    old_start: &File,
    old_path: &Path,
    new_start: &File,
    new_path: &Path,
) -> io::Result<()> {
    let (old_dir, old_name) = parent(old_start, old_path)?;
    let (new_dir, new_name) = parent(new_start, new_path)?;
    Ok(renameat(
        old_dir.file(),
        old_name,
        new_dir.file(),
        new_name,
    )?)
}

pub(crate) fn symlink(target: &Path, start: &File, path: &Path) -> io::Result<()> {
    let (dir, name) = parent(start, path)?;
    Ok(symlinkat(target, dir.file(), name)?)
}

pub(crate) fn hard_link(
    old_start: &File,
    old_path: &Path,
    new_start: &File,
    new_path: &Path,
) -> io::Result<()> {
    let (new_dir, new_name) = parent(new_start, new_path)?;
    // The kernel follows a link that has a slash behind it: to a directory
    // only, which has no hard links.
    if has_trailing_slash(old_path) {
        check(old_path)?;
        resolve(old_start, old_path, OFlags::PATH, Mode::empty())?;
        return Err(Errno::PERM.into());
    }
    let (old_dir, old_name) = parent(old_start, old_path)?;
    Ok(linkat(
        old_dir.file(),
        old_name,
        new_dir.file(),
        new_name,
        AtFlags::empty(),
    )?)
}

pub(crate) fn read_link(start: &File, path: &Path) -> io::Result<Vec<u8>> {
    check(path)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    read_opened_link(&resolve(start, path, flags, Mode::empty())?)
}

fn read_opened_link(link: &File) -> io::Result<Vec<u8>> {
    match readlinkat(link, "", Vec::new()) {
        Ok(target) => Ok(target.into_bytes()),
        // What an empty path gets for anything but a link.
        Err(Errno::NOENT) => Err(Errno::INVAL.into()),
        Err(errno) => Err(errno.into()),
    }
}

pub(crate) fn set_times(
    start: &File,
    path: &Path,
    follow: bool,
    atime: Option<SystemTime>,
    mtime: Option<SystemTime>,
) -> io::Result<()> {
    check(path)?;
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, !follow);
    let file = resolve(start, path, flags, Mode::empty())?;
    let times = Timestamps {
        last_access: timespec(atime)?,
        last_modification: timespec(mtime)?,
    };
    Ok(utimensat(&file, "", &times, AtFlags::EMPTY_PATH)?)
}

fn timespec(time: Option<SystemTime>) -> io::Result<Timespec> {
    let Some(time) = time else {
        return Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        });
    };
    let overflow = |_| io::Error::from(Errno::OVERFLOW);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Ok(Timespec {
            tv_sec: after.as_secs().try_into().map_err(overflow)?,
            tv_nsec: after.subsec_nanos().into(),
        }),
        Err(error) => {
            let before = error.duration();
            let seconds: i64 = before.as_secs().try_into().map_err(overflow)?;
            let (tv_sec, tv_nsec) = match before.subsec_nanos() {
                0 => (-seconds, 0),
                nanoseconds => (-seconds - 1, 1_000_000_000 - i64::from(nanoseconds)),
            };
            Ok(Timespec { tv_sec, tv_nsec })
        }
    }
}

/// An entry of a directory, by what the directory itself says.
pub(crate) struct Entry {
    pub inode: u64,
    pub type_: DescriptorType,
    /// Not necessarily UTF-8.
    pub name: Vec<u8>,
}

/// All entries, without a look at each.
pub(crate) fn read_dir(dir: &File) -> io::Result<Vec<Entry>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let opened = resolve(dir, Path::new("."), flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in Dir::new(opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let type_ = match entry.file_type() {
            FileType::RegularFile => DescriptorType::RegularFile,
            FileType::Directory => DescriptorType::Directory,
            FileType::Symlink => DescriptorType::SymbolicLink,
            FileType::BlockDevice => DescriptorType::BlockDevice,
            FileType::CharacterDevice => DescriptorType::CharacterDevice,
            FileType::Unknown => match stat(dir, OsStr::from_bytes(name).as_ref(), false) {
                Ok(meta) => meta.file_type().into(),
                Err(_) => DescriptorType::Unknown,
            },
            FileType::Fifo | FileType::Socket => DescriptorType::Unknown,
        };
        entries.push(Entry {
            inode: entry.ino(),
            type_,
            name: name.to_vec(),
        });
    }
    Ok(entries)
}

/// Whether this is `/proc/self/fd`, which to the program means its own
/// descriptors.
pub(crate) fn is_own_descriptors(dir: &File) -> bool {
    let identity = |path| {
        let stat = statat(CWD, path, AtFlags::empty()).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    // `dir` is held, so that its numbers are not given anew.
    if !matches!(what(dir), Ok((device, _)) if Some(device) == proc_device()) {
        return false;
    }
    let Ok(meta) = Metadata::from_file(dir) else {
        return false;
    };
    let this = Some((meta.dev(), meta.ino()));
    if identity("/proc/self/fd") != this && identity("/proc/thread-self/fd") != this {
        return false;
    }
    matches!(fstatfs(dir), Ok(fs) if i64::from(fs.f_type) == PROC_SUPER_MAGIC)
}

/// Whether an error can be one of a path that leads to the program's own
/// descriptor: the kernel doesn't follow it, or hasn't one of that number.
pub(crate) fn may_be_own_descriptor(path: &Path, error: &ErrorCode) -> bool {
    match error {
        ErrorCode::Loop => true,
        ErrorCode::NoEntry | ErrorCode::Access | ErrorCode::ReadOnly => {
            path.file_name().and_then(number).is_some()
        }
        _ => false,
    }
}

/// The number of a link `/proc/self/fd/N` itself.
pub(crate) fn own_link(start: &File, path: &Path) -> io::Result<Option<u32>> {
    let Some(number) = path.file_name().and_then(number) else {
        return Ok(None);
    };
    let (dir, _) = parent(start, path)?;
    Ok(Some(number).filter(|_| is_own_descriptors(dir.file())))
}

/// What `procfs` says a descriptor of this process leads to.
pub(crate) fn descriptor_link(descriptor: i32) -> io::Result<Vec<u8>> {
    let path = format!("/proc/self/fd/{descriptor}");
    Ok(readlinkat(CWD, path, Vec::new())?.into_bytes())
}

fn number(name: &OsStr) -> Option<u32> {
    let digits = name
        .to_str()
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// A path that leads to or through `/proc/self/fd/N`: the number, and the path
/// that's left from there.
pub(crate) fn own_descriptor(
    start: &File,
    path: &Path,
    follow: bool,
) -> io::Result<Option<(u32, OsString)>> {
    let here = OFlags::PATH | OFlags::NOFOLLOW;
    let mut at = resolve(start, Path::new("."), here, Mode::empty())?;
    let mut left: VecDeque<OsString> = components(path.as_os_str().as_bytes()).collect();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let last = left.is_empty();
        if let Some(number) = number(&name).filter(|_| is_own_descriptors(&at)) {
            let rest: Vec<OsString> = left.into();
            return Ok((follow || !last).then(|| (number, rest.join(OsStr::new("/")))));
        }
        let Ok(next) = resolve(&at, name.as_ref(), here, Mode::empty()) else {
            return Ok(None);
        };
        let meta = Metadata::from_file(&next)?;
        if !meta.file_type().is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        let target = read_opened_link(&next)?;
        let absolute = target.starts_with(b"/");
        let magic = absolute && Some(meta.dev()) == proc_device();
        if magic || links > LINKS_MAX || (last && !follow) {
            return Ok(None);
        }
        if absolute {
            at = resolve(&at, Path::new("/"), here, Mode::empty())?;
        }
        for component in components(&target).rev() {
            left.push_front(component);
        }
    }
    Ok(None)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = OsString> {
    path.split(|&b| b == b'/')
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
}

/// A copy of the process's own standard stream, for interfaces that know the
/// program's descriptors by no number.
pub(crate) fn standard_stream(number: u32) -> io::Result<File> {
    if number > 2 {
        return Err(Errno::NOENT.into());
    }
    #[expect(unsafe_code, reason = "standard streams have no owner")]
    // SAFETY: the descriptors 0 to 2 are open as long as the process lives, or
    // copying them fails.
    let stream = unsafe { BorrowedFd::borrow_raw(number as i32) };
    Ok(rustix::io::fcntl_dupfd_cloexec(stream, 3)?.into())
}

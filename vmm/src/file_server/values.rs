//! Bounds on a guest's numbers before they reach the file server's library, which casts and unwraps them.
//!
//! Every 64-bit value of a FUSE request that becomes an argument of a system call is here, and every set
//! of flags: an offset is a `loff_t` (Linux `include/linux/types.h`), flags are on a list. What Linux's
//! own driver never sends is refused by the errno that the system call would give. Not here: node ids,
//! handles and look-up counts, which the library only compares, and READDIR's offset, a cookie that file
//! systems may give any value, and for all of which the library has an answer.

use std::io;

use virtiofsd::filesystem::{Context, SetattrValid};
use virtiofsd::fuse::SetattrIn;
use virtiofsd::soft_idmap::Id;

/// The largest offset that a file has (`MAX_LFS_FILESIZE` on 64 bits).
const OFFSET_MAX: u64 = i64::MAX.unsigned_abs();
/// `-1`: "leave it as it is" to `setresuid(2)` and `chown(2)`; no user or group.
const NO_ID: u32 = u32::MAX;
const NANOSECONDS_MAX: u32 = 999_999_999;

/// Modes that `fuse_file_fallocate` of Linux lets through (`fs/fuse/file.c`). Not: collapsing and inserting
/// ranges, unsharing extents.
const FALLOCATE_MODES: u32 =
    (libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE)
        .cast_unsigned();
/// Positions that `fuse_lseek` asks the server for (`fs/fuse/file.c`); the guest's kernel knows the other positions.
const WHENCES: [u32; 2] = [
    libc::SEEK_DATA.cast_unsigned(),
    libc::SEEK_HOLE.cast_unsigned(),
];
/// Flags of a rename. Not `RENAME_WHITEOUT`, which makes a character device.
const RENAMES: [u32; 3] = [0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];

fn allowed(is: bool, errno: i32) -> io::Result<()> {
    if is {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(errno))
    }
}

/// Checks that the bytes that a READ or WRITE moves end at or before [`OFFSET_MAX`].
pub(crate) fn range(offset: u64, bytes: u32) -> io::Result<()> {
    let end = offset.checked_add(u64::from(bytes));
    allowed(end.is_some_and(|end| end <= OFFSET_MAX), libc::EINVAL)
}

/// Checks a range that is to be allocated, zeroed or punched, and the mode.
pub(super) fn fallocate(mode: u32, offset: u64, length: u64) -> io::Result<()> {
    allowed(mode & !FALLOCATE_MODES == 0, libc::EOPNOTSUPP)?;
    let each = offset <= OFFSET_MAX && (1..=OFFSET_MAX).contains(&length);
    allowed(each, libc::EINVAL)?;
    let end = offset.checked_add(length);
    allowed(end.is_some_and(|end| end <= OFFSET_MAX), libc::EFBIG)
}

/// Checks where data or a hole is looked for.
pub(super) fn lseek(offset: u64, whence: u32) -> io::Result<()> {
    allowed(WHENCES.contains(&whence), libc::EINVAL)?;
    allowed(offset <= OFFSET_MAX, libc::ENXIO)
}

/// Checks how a name is changed.
pub(super) fn rename(flags: u32) -> io::Result<()> {
    allowed(RENAMES.contains(&flags), libc::EINVAL)
}

/// Checks new attributes, those that `valid` names. A time in seconds may be negative, which
/// FUSE carries as a large number.
pub(super) fn setattr(attr: &SetattrIn, valid: SetattrValid) -> io::Result<()> {
    let holds = |flag, is: bool| !valid.contains(flag) || is;
    let good = holds(SetattrValid::SIZE, attr.size <= OFFSET_MAX)
        && holds(SetattrValid::UID, attr.uid.into_inner() != NO_ID)
        && holds(SetattrValid::GID, attr.gid.into_inner() != NO_ID)
        && holds(SetattrValid::ATIME, attr.atimensec <= NANOSECONDS_MAX)
        && holds(SetattrValid::MTIME, attr.mtimensec <= NANOSECONDS_MAX);
    allowed(good, libc::EINVAL)
}

/// Checks the user and group that make a file: for `-1` the file server itself would make it.
pub(super) fn maker(context: &Context) -> io::Result<()> {
    let is_somebody = context.uid.into_inner() != NO_ID && context.gid.into_inner() != NO_ID;
    allowed(is_somebody, libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errno(result: io::Result<()>) -> Option<i32> {
        result.err().and_then(|err| err.raw_os_error())
    }

    #[test]
    fn the_last_byte_of_a_file_can_be_read_and_none_behind_it() {
        assert_eq!(errno(range(OFFSET_MAX - 1, 1)), None);
        assert_eq!(errno(range(OFFSET_MAX, 0)), None);
        for (offset, bytes) in [(OFFSET_MAX, 1), (OFFSET_MAX + 1, 0), (u64::MAX, u32::MAX)] {
            assert_eq!(
                errno(range(offset, bytes)),
                Some(libc::EINVAL),
                "{offset:#x}"
            );
        }
    }

    #[test]
    fn fallocate_knows_three_modes_and_file_offsets() {
        for mode in 0..0x80 {
            let is_known = mode & !0x13 == 0;
            assert_eq!(
                errno(fallocate(mode, 0, 1)).is_none(),
                is_known,
                "{mode:#x}"
            );
        }
        assert_eq!(errno(fallocate(0, 0, OFFSET_MAX)), None);
        assert_eq!(errno(fallocate(0, 1, OFFSET_MAX)), Some(libc::EFBIG));
        assert_eq!(errno(fallocate(0, OFFSET_MAX + 1, 1)), Some(libc::EINVAL));
        assert_eq!(errno(fallocate(0, 0, OFFSET_MAX + 1)), Some(libc::EINVAL));
        assert_eq!(errno(fallocate(0, 0, 0)), Some(libc::EINVAL));
    }

    #[test]
    fn positions_and_renames_are_on_a_list() {
        let seeks: Vec<_> = (0..6).filter(|whence| lseek(0, *whence).is_ok()).collect();
        assert_eq!(seeks, [3, 4]);
        assert_eq!(errno(lseek(OFFSET_MAX + 1, 3)), Some(libc::ENXIO));
        let renames: Vec<_> = (0..16).filter(|flags| rename(*flags).is_ok()).collect();
        assert_eq!(renames, [0, 1, 2]);
    }

    #[test]
    fn attributes_are_looked_at_when_they_are_meant() {
        let wild = SetattrIn {
            size: u64::MAX,
            uid: NO_ID.into(),
            gid: NO_ID.into(),
            atimensec: 0x3fff_ffff, // UTIME_NOW
            mtimensec: 0x3fff_fffe, // UTIME_OMIT
            atime: u64::MAX,        // one second before 1970
            ..SetattrIn::default()
        };
        assert_eq!(errno(setattr(&wild, SetattrValid::MODE)), None);
        let meant = [
            SetattrValid::SIZE,
            SetattrValid::UID,
            SetattrValid::GID,
            SetattrValid::ATIME,
            SetattrValid::MTIME,
        ];
        for valid in meant {
            assert_eq!(
                errno(setattr(&wild, valid)),
                Some(libc::EINVAL),
                "{valid:?}"
            );
        }
        let tame = SetattrIn {
            atime: u64::MAX,
            ..SetattrIn::default()
        };
        assert_eq!(errno(setattr(&tame, SetattrValid::all())), None);
    }

    proptest! {
        /// What passes is an offset the kernel takes, and its end is one, too.
        #[test]
        fn what_passes_fits_a_file_offset(offset: u64, bytes: u32, length: u64, mode: u32) {
            let fits = |value: u64| i64::try_from(value).is_ok();
            if range(offset, bytes).is_ok() {
                prop_assert!(fits(offset) && fits(offset + u64::from(bytes)));
            }
            if fallocate(mode, offset, length).is_ok() {
                prop_assert!(fits(offset) && fits(length) && fits(offset + length));
            }
        }
    }
}

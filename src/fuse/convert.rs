//! Conversions between the file system's types and fuser's.

use crate::fs::{Attr, FsError, Replace, SetTime};
use crate::meta::{Kind, Time};
use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}

pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: time(attr.mtime),
        kind: kind(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: crate::fs::BLOCK_SIZE,
        flags: 0,
    }
}

pub fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// Converts a time. One that `SystemTime` cannot represent becomes the epoch; on Linux it represents every i64 of
/// seconds.
fn time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|second| second.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

/// Converts a time to set. For times before the epoch fuser 0.18 subtracts the nanoseconds from the seconds, where
/// the kernel means them to be added; so the absolute values of both parts are the kernel's, and only the sign of the
/// seconds is lost.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(time_of(time)),
    }
}

/// Converts a time from the kernel, as [`set_time`] does.
pub fn time_of(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: after.as_secs() as i64, nsec: after.subsec_nanos() },
        Err(e) => Time { sec: (e.duration().as_secs() as i64).wrapping_neg(), nsec: e.duration().subsec_nanos() },
    }
}

/// Converts the flags of a rename. EINVAL for combinations that renameat2(2) does not allow, and for RENAME_WHITEOUT,
/// as in kernel overlayfs: a union on top of a mount must not take the mount's whiteouts for its own.
pub fn replace(flags: RenameFlags) -> Result<Replace, FsError> {
    if flags == RenameFlags::empty() {
        Ok(Replace::Allow)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(Replace::Forbid)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(Replace::Exchange)
    } else {
        Err(FsError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distant_times_are_preserved() {
        for (sec, nsec) in [(-1, 999_999_999), (i64::MIN, 0), (i64::MAX, 0), (4_102_444_800, 1), (-2_208_988_800, 5)] {
            let got = time(Time { sec, nsec });
            let back = match got.duration_since(UNIX_EPOCH) {
                Ok(after) => i128::from(after.as_secs()) * 1_000_000_000 + i128::from(after.subsec_nanos()),
                Err(e) => {
                    -(i128::from(e.duration().as_secs()) * 1_000_000_000 + i128::from(e.duration().subsec_nanos()))
                }
            };
            assert_eq!(back, i128::from(sec) * 1_000_000_000 + i128::from(nsec));
        }
    }
}

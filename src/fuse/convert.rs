//! Between the file system's plain data and fuser's types.

use crate::fs::{Attr, FsError};
use crate::meta::{Kind, Time};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}

pub fn attr(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
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

/// A time that the clock's type cannot hold becomes the epoch; on Linux it holds every i64 of seconds.
fn time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|second| second.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_far_from_now_stay_what_they_are() {
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

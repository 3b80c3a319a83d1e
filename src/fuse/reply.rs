//! Replies to the kernel that several requests share, and errors of them.

use super::convert;
use crate::fs::FsError;
use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyEmpty, ReplyXattr};
use std::time::UNIX_EPOCH;

/// Returns the errno for the caller. Logs the error if the store is damaged.
pub(super) fn failed(operation: &str, ino: INodeNo, error: &FsError) -> Errno {
    if error.is_damage() {
        tracing::error!("{operation} of inode {}: {error}", ino.0);
    }
    convert::errno(error)
}

pub(super) fn reply_empty(reply: ReplyEmpty, operation: &str, ino: INodeNo, done: Result<(), FsError>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(failed(operation, ino, &e)),
    }
}

/// The reply for a name that does not exist: inode 0 makes the kernel cache a negative dentry. It ignores the other
/// attributes.
pub(super) const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    if size == 0 {
        // Fits: the indexer limits values and lists to 64 KiB.
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(convert::errno(&FsError::Range));
    } else {
        reply.data(value);
    }
}

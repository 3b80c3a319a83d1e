//! Exactly-once execution of requests that the kernel sends again after the death of a server ([`Handover`]).
//!
//! Most requests may be executed twice: reads, writes at an offset, absolute attributes. The others are those that
//! change names, and those on extended attributes that fail if the attribute exists, or does not.

use crate::fs::{Fs, FsError};
use crate::handover::{Before, Handover, Record};
use crate::meta::Time;
use fuser::Request;
use std::sync::Arc;

/// The bit that a request sent again has in its number (FUSE_UNIQUE_RESEND).
const RESENT: u64 = 1 << 63;

/// Splits a request's number into the number that it had when it was sent first, and whether this is not the first
/// time.
fn request_number(unique: u64) -> (u64, bool) {
    (unique & !RESENT, unique & RESENT != 0)
}

/// Executes a request exactly once. `now` returns how things are that the request changes. If an earlier server has
/// executed it, `recall` is called in place of `execute`, with how things were before. The record must be dropped after
/// the answer.
pub(super) fn once<T>(
    handover: &Arc<Handover>,
    request: &Request,
    now: impl FnOnce() -> Before,
    execute: impl FnOnce() -> T,
    recall: impl FnOnce(Before) -> T,
) -> (T, Record) {
    let (number, is_resent) = request_number(request.unique().0);
    let now = now();
    // Records are searched for a request that is sent again only: there are many.
    let earlier = if is_resent { handover.before(number) } else { None };
    match earlier {
        Some((before, record)) if before != now => (recall(before), record),
        Some((_, record)) => (execute(), record),
        None => {
            let record = handover.record(number, now);
            (execute(), record)
        }
    }
}

/// Returns the inode number of a name, for a record: 0 if there is no such name.
pub(super) fn number(fs: &Fs, parent: u64, name: &[u8]) -> u64 {
    match fs.number(parent, name) {
        Ok(ino) => ino,
        Err(FsError::NotFound) => 0,
        Err(_) => u64::MAX,
    }
}

/// Returns whether an inode has an extended attribute, for a record.
pub(super) fn has_xattr(fs: &Fs, ino: u64, name: &[u8]) -> u64 {
    u64::from(fs.getxattr(ino, name).is_ok())
}

/// Records the modification time that the kernel has cached for a file, before a request that changes its data: the
/// file system's own time is wrong until the request is complete ([`Fs::keep_mtime`]).
pub(super) fn record_mtime(handover: &Arc<Handover>, request: &Request, fs: &Fs, ino: u64) -> Option<Record> {
    let (number, is_resent) = request_number(request.unique().0);
    if is_resent && let Some((before, record)) = handover.before(number) {
        fs.set_kernel_mtime(ino, Time { sec: before[0] as i64, nsec: before[1] as u32 });
        return Some(record);
    }
    let mtime = fs.kernel_mtime(ino)?;
    Some(handover.record(number, [mtime.sec as u64, mtime.nsec.into(), 0]))
}

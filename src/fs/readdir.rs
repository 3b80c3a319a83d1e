//! What listings are made of.

use super::Ino;
use crate::meta::Kind;

/// One entry of a listing.
pub struct DirEntry<'a> {
    /// The name; `.` and `..` come first.
    pub name: &'a [u8],
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Where a listing goes on behind this entry.
    pub next: u64,
}

/// Where the first entry behind `.` and `..` stands.
pub(super) const FIRST: u64 = 2;

/// Lists `.` and `..` from `from` on; whether the listing is full.
pub(super) fn dots(ino: Ino, parent: Ino, from: u64, full: &mut impl FnMut(&DirEntry) -> bool) -> bool {
    let dots = [(0, &b"."[..], ino), (1, b"..", parent)];
    dots.into_iter().any(|(at, name, ino)| from <= at && full(&DirEntry { name, ino, kind: Kind::Dir, next: at + 1 }))
}

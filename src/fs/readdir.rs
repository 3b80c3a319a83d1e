//! Directory entries of a listing.

use super::Ino;
use crate::meta::Kind;

/// One directory entry.
pub struct DirEntry<'a> {
    /// The name; `.` and `..` come first.
    pub name: &'a [u8],
    /// The inode number.
    pub ino: Ino,
    /// The inode's kind.
    pub kind: Kind,
    /// The offset after this entry (`d_off`).
    pub next: u64,
}

/// The offset of the first entry after `.` and `..`.
pub(super) const FIRST: u64 = 2;

/// Lists `.` and `..` from offset `from` on. Returns whether the listing is full.
pub(super) fn dots(ino: Ino, parent: Ino, from: u64, full: &mut impl FnMut(&DirEntry) -> bool) -> bool {
    let dots = [(0, &b"."[..], ino), (1, b"..", parent)];
    dots.into_iter().any(|(at, name, ino)| from <= at && full(&DirEntry { name, ino, kind: Kind::Dir, next: at + 1 }))
}

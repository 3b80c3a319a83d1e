//! Listing directories.

use super::{Attr, Fs, FsError, Ino, number};
use crate::layer::IndexError;
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

const DOT: u64 = 0;
const DOT_DOT: u64 = 1;
const FIRST: u64 = 2;

impl Fs {
    /// Lists the directory `ino` from `from` on, 0 being its start, until `full` says so of an entry that it did not
    /// take. An entry's `next` stays good for as long as the image, since an image never changes.
    pub fn readdir<'a>(
        &'a self,
        ino: Ino,
        from: u64,
        mut full: impl FnMut(&DirEntry<'a>) -> bool,
    ) -> Result<(), FsError> {
        let dir = self.dir(ino)?;
        let dots = [(DOT, &b"."[..], ino), (DOT_DOT, b"..", number(dir.parent.get()))];
        for (at, name, ino) in dots {
            if from <= at && full(&DirEntry { name, ino, kind: Kind::Dir, next: at + 1 }) {
                return Ok(());
            }
        }
        let entries = self.tree.children(dir)?;
        let start = usize::try_from(from.saturating_sub(FIRST)).unwrap_or(usize::MAX).min(entries.len());
        for (at, entry) in entries.iter().enumerate().skip(start) {
            let name = self.tree.name(entry)?;
            let kind = entry.kind().ok_or(IndexError::Damaged("an entry has no kind"))?;
            if full(&DirEntry { name, ino: number(entry.node.get()), kind, next: FIRST + at as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Fs::readdir`], each entry with its inode's attributes.
    pub fn readdirplus<'a>(
        &'a self,
        ino: Ino,
        from: u64,
        mut full: impl FnMut(&DirEntry<'a>, &Attr) -> bool,
    ) -> Result<(), FsError> {
        let mut failed = None;
        self.readdir(ino, from, |entry| match self.getattr(entry.ino) {
            Ok(attr) => full(entry, &attr),
            Err(e) => {
                failed = Some(e);
                true
            }
        })?;
        failed.map_or(Ok(()), Err)
    }
}

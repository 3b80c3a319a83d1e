//! Listing directories of an image.

use super::{Image, number};
use crate::fs::readdir::{DirEntry, FIRST, dots};
use crate::fs::{FsError, Ino};
use crate::layer::IndexError;

impl Image {
    /// [`crate::fs::Fs::readdir`]. An entry's `next` stays good for as long as the image, since an image never changes.
    pub fn readdir(&self, ino: Ino, from: u64, mut full: impl FnMut(&DirEntry) -> bool) -> Result<(), FsError> {
        let dir = self.dir(ino)?;
        if dots(ino, number(dir.parent.get()), from, &mut full) {
            return Ok(());
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
}

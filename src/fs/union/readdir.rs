//! Listing directories of the union.
//!
//! Names that the image has come first, at the places that they have there, whether the upper directory has them too or
//! not; then those that only the upper has, in the order in which they came. So a listing that is going on while names
//! are copied up, removed or made shows whatever stays exactly once.

use super::Union;
use super::table::{Name, What};
use crate::fs::lower;
use crate::fs::readdir::{DirEntry, FIRST, dots};
use crate::fs::{FsError, Ino};
use crate::meta::Kind;
use std::sync::Arc;

/// From here on are the names that the image does not have.
const OWN: u64 = 1 << 32;
/// How many names are taken at once while the table is locked.
const BATCH: usize = 256;

/// A name, its inode, its kind, and the place behind it.
struct Item {
    name: Name,
    ino: Ino,
    kind: Kind,
    next: u64,
}

impl Union {
    /// [`crate::fs::Fs::readdir`].
    pub fn readdir(&self, ino: Ino, from: u64, mut full: impl FnMut(&DirEntry) -> bool) -> Result<(), FsError> {
        if self.table().get(ino).is_none() {
            return self.lower.readdir(ino, from, full);
        }
        self.ensure_loaded(ino)?;
        if dots(ino, self.parent(ino)?, from, &mut full) {
            return Ok(());
        }
        self.each_name(ino, from, |name, (ino, kind), next| full(&DirEntry { name, ino, kind, next }))
    }

    /// Gives the names in a directory from a place on, until `enough`.
    pub(super) fn each_name(
        &self,
        dir: Ino,
        from: u64,
        mut enough: impl FnMut(&[u8], (Ino, Kind), u64) -> bool,
    ) -> Result<(), FsError> {
        self.ensure_loaded(dir)?;
        let mut from = from.max(FIRST);
        loop {
            let batch = self.batch(dir, from)?;
            let Some(last) = batch.last() else { return Ok(()) };
            from = last.next;
            if batch.iter().any(|item| enough(&item.name, (item.ino, item.kind), item.next)) {
                return Ok(());
            }
        }
    }

    fn batch(&self, dir: Ino, from: u64) -> Result<Vec<Item>, FsError> {
        let mut batch = Vec::new();
        // Read first: the table's lock is for memory only.
        let shown = match self.table().get(dir) {
            Some(entry) => entry.dir.as_ref().and_then(|here| here.lower),
            None => Some(dir),
        };
        let listing = shown.map(|lower| self.lower.listing(lower)).transpose()?;
        let table = self.table();
        let (lower, names) = match table.get(dir) {
            Some(entry) => {
                let here = entry.dir.as_ref().ok_or(FsError::NotDir)?;
                (here.lower, here.names.as_ref())
            }
            None => (Some(dir), None),
        };
        let kind_of = |ino: Ino| match table.get(ino) {
            Some(entry) => Ok(entry.kind),
            None => self.lower.kind(ino),
        };
        if let (Some(lower), Some(listing)) = (lower.filter(|_| from < OWN), &listing) {
            for item in listing.from((from - FIRST) as usize) {
                if batch.len() >= BATCH {
                    return Ok(batch);
                }
                let (at, lower::Item { name, ino, kind }) = item?;
                let next = FIRST + at as u64 + 1;
                let (ino, kind) = match names.and_then(|names| names.get(name)) {
                    Some(What::Whiteout) => continue,
                    Some(What::Inode(ino)) => (ino, kind_of(ino)?),
                    None if self.is_others(&table, ino) => (self.lower.renumber(lower, name)?, kind),
                    None => (ino, kind),
                };
                batch.push(Item { name: Arc::from(name), ino, kind, next });
            }
        }
        let Some(names) = names else { return Ok(batch) };
        for (at, name, what) in names.behind(from.saturating_sub(OWN)) {
            if batch.len() >= BATCH {
                break;
            }
            let What::Inode(ino) = what else { continue };
            if let Some(lower) = lower
                && self.lower.find(lower, name)?.is_some()
            {
                continue;
            }
            batch.push(Item { name: name.clone(), ino, kind: kind_of(ino)?, next: OWN + at });
        }
        Ok(batch)
    }
}

//! Directory listings of the union, with offsets that stay valid while names change.
//!
//! Names that only the upper directory has are listed first: those created since the directory was loaded, the newest
//! first, and the others in the order of a hash. Then the names of the image, at the offsets they have there, whether
//! the upper has them too or not. A name keeps its offset for as long as it exists, also across copy-up, replacement and
//! exchange, and in the next server of the mount. So a listing that runs while names change shows every name that stays
//! exactly once, and it terminates: a name that is created or renamed meanwhile lies before the offset reached, or at
//! one of the image's offsets, each of which is passed once.
//!
//! Offsets fit into 31 bits, for 32-bit programs, until a directory has had 2^29 new names.

use super::Union;
use super::inode_table::{Name, NameState};
use crate::fs::lower_types;
use crate::fs::readdir::{DirEntry, FIRST, dots};
use crate::fs::{FsError, Ino};
use crate::meta::Kind;
use std::sync::Arc;

/// The first offset of names that the image does not have; their serial number is added to it. The image's offsets are
/// smaller, though its names are listed later.
const OWN: u64 = 1 << 30;
/// How many names one batch reads while the table is locked.
const BATCH: usize = 256;

/// A directory entry: name, inode, kind, and the offset after it.
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

    /// Calls `enough` with each name of a directory from an offset on, until it returns true.
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
        // Loaded before the table is locked: the table's lock is never held over I/O.
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
        let older_than = if from <= FIRST { Some(u64::MAX) } else { from.checked_sub(OWN) };
        for (serial, name, what) in names.zip(older_than).into_iter().flat_map(|(names, newer)| names.older(newer)) {
            let NameState::Inode(ino) = what else { continue };
            if let Some(lower) = lower
                && self.lower.find(lower, name)?.is_some()
            {
                continue;
            }
            if batch.len() >= BATCH {
                return Ok(batch);
            }
            batch.push(Item { name: name.clone(), ino, kind: kind_of(ino)?, next: OWN + serial });
        }
        let (Some(lower), Some(listing)) = (lower, &listing) else { return Ok(batch) };
        let start = if older_than.is_some() { 0 } else { from - FIRST };
        for item in listing.from(start as usize) {
            if batch.len() >= BATCH {
                break;
            }
            let (at, lower_types::Item { name, ino, kind }) = item?;
            let next = FIRST + at as u64 + 1;
            let (ino, kind) = match names.and_then(|names| names.get(name)) {
                Some(NameState::Whiteout) => continue,
                Some(NameState::Inode(ino)) => (ino, kind_of(ino)?),
                None if self.belongs_to_upper(&table, ino) => (self.lower.renumber(lower, name)?, kind),
                None => (ino, kind),
            };
            batch.push(Item { name: Arc::from(name), ino, kind, next });
        }
        Ok(batch)
    }
}

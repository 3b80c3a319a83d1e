//! Names of lower inodes: from an inode number to the names under which it shows through. Also generations and lookup
//! by inode number, for file handles.

use super::inode_table::{NameState, Table};
use super::{TRIES, Union};
use crate::fs::lower_types::Name;
use crate::fs::{Attr, FsError, Ino, ROOT};
use crate::upper::is_derived;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

impl Union {
    /// [`crate::fs::Fs::by_number`].
    pub fn by_number(&self, ino: Ino) -> Result<Attr, FsError> {
        if self.is_seen(ino)? { self.getattr(ino) } else { Err(FsError::Stale(ino)) }
    }

    /// Whether an inode is visible under any name. This may load all directories, once.
    fn is_seen(&self, ino: Ino) -> Result<bool, FsError> {
        let known = || self.table().get(ino).map(|entry| entry.linking || !entry.is_removed());
        let shows = || Ok::<_, FsError>(self.lower.has(ino) && !self.names_now(ino)?.0.is_empty());
        if let Some(seen) = known() {
            return Ok(seen);
        }
        // This loads the directories on its path in the image, under which it may have been copied up.
        if shows()? {
            return Ok(true);
        }
        if known().is_none() {
            self.load_all()?;
        }
        if known().is_none() && !self.lower.has(ino) {
            self.lower.load_all()?;
        }
        known().map_or_else(shows, Ok)
    }

    /// [`crate::fs::Fs::generation`]. It matters only for numbers that are reused.
    pub fn generation(&self, ino: Ino) -> u32 {
        if !is_derived(ino) {
            return self.lower.generation(ino);
        }
        let known = |table: &Table| table.get(ino).and_then(|entry| entry.generation);
        if let Some(known) = known(&self.table()) {
            return known;
        }
        let found = (0..TRIES).find_map(|_| self.try_generation(ino).transpose()).and_then(Result::ok);
        // Without file handles below: a counter, unique in this mount and unlikely to recur in others.
        let new = || {
            self.counts_generations.store(true, Ordering::Relaxed);
            self.next_generation.fetch_add(1, Ordering::Relaxed)
        };
        let mut table = self.table_mut();
        match table.get_mut(ino) {
            Some(entry) => *entry.generation.get_or_insert_with(|| found.unwrap_or_else(new)),
            None => 0,
        }
    }

    /// Returns `None` if a concurrent operation has changed the inode's name; the caller retries.
    fn try_generation(&self, ino: Ino) -> Result<Option<u32>, FsError> {
        let (place, raw) = match self.table().get(ino) {
            Some(entry) => (entry.names.first().filter(|_| entry.held.is_none()).cloned(), entry.raw),
            None => return Err(FsError::Stale(ino)),
        };
        let backing = self.upper.backing();
        let Some((dir, name)) = place else {
            return Ok(Some(backing.generation(self.handle(ino)?.as_fd(), b"")?));
        };
        let parent = self.handle(dir)?;
        let found = backing.generation(parent.as_fd(), &name)?;
        let is_same = backing.stat_at(parent.as_fd(), &name).is_ok_and(|seen| Some(seen.ino) == raw);
        Ok(Some(found).filter(|_| is_same))
    }

    /// Returns the names under which an inode of the image, which is not in the upper directory yet, shows through.
    pub(super) fn visible_names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        let (names, all) = self.names_now(ino)?;
        if all || self.all_loaded.load(Ordering::Acquire) {
            return Ok(names);
        }
        // A directory may have been moved below one that is not loaded.
        self.load_all()?;
        Ok(self.names_now(ino)?.0)
    }

    /// Returns the visible names, and whether they are all that the image has.
    fn names_now(&self, ino: Ino) -> Result<(Vec<(Ino, Name)>, bool), FsError> {
        let (mut visible, mut all) = (Vec::new(), true);
        for (dir, name) in self.lower.names(ino)? {
            if self.shows(dir)? && self.slot(dir, &name)?.is_none() {
                visible.push((dir, name));
            } else {
                all = false;
            }
        }
        Ok((visible, all))
    }

    /// Whether a directory of the image is visible, at its own path or moved, with its content showing through.
    fn shows(&self, dir: Ino) -> Result<bool, FsError> {
        if let Some(entry) = self.table().get(dir) {
            return Ok(!entry.is_removed() && entry.dir.as_ref().is_some_and(|d| d.lower == Some(dir)));
        }
        if dir == ROOT {
            return Ok(true);
        }
        let parent = self.lower.parent(dir)?;
        if !self.shows(parent)? {
            return Ok(false);
        }
        Ok(match self.slot(parent, &self.lower.dir_name(dir)?)? {
            None => true,
            Some(NameState::Inode(found)) => found == dir,
            Some(NameState::Whiteout) => false,
        })
    }

    /// Looks a name up in the upper part of a directory.
    fn slot(&self, dir: Ino, name: &[u8]) -> Result<Option<NameState>, FsError> {
        self.ensure_loaded(dir)?;
        Ok(self.table().names(dir).and_then(|names| names.get(name)))
    }
}

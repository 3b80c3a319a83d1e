//! Unloading of upper directories: names and inodes that the kernel has forgotten are dropped from the inode table,
//! which is only a cache of the upper directory.
//!
//! A directory is unloaded as a whole, once the kernel has no reference to any inode in it. That is done between
//! requests only: within one, an inode number that was looked up can be used.

use super::Union;
use super::inode_table::{Entry, NameState, Table};
use crate::fs::{Ino, ROOT};
use crate::sys;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// After how many dropped inodes the freed memory is returned to the kernel.
const RETURN_AFTER: usize = 10_000;

/// Directories in which the kernel has forgotten inodes.
#[derive(Default)]
pub struct Forgotten {
    /// Shared by requests; exclusive while directories are unloaded.
    requests: RwLock<()>,
    dirs: Mutex<HashSet<Ino>>,
    /// Whether there are any.
    any: AtomicBool,
    /// How many inodes have been dropped since memory was returned.
    dropped: AtomicUsize,
}

/// A request that is being executed. When the last one ends, directories may be unloaded.
pub struct Running<'a> {
    union: &'a Union,
    running: Option<RwLockReadGuard<'a, ()>>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.running = None;
        if self.union.forgotten.any.load(Ordering::Relaxed) {
            self.union.unload();
        }
    }
}

impl Union {
    /// Begins a request. Inode numbers that it looks up are valid until it ends, also without a reference.
    pub fn begin(&self) -> Running<'_> {
        Running { union: self, running: Some(self.forgotten.requests.read()) }
    }

    /// Notes that the kernel has forgotten an inode.
    pub(super) fn note_forgotten(&self, ino: Ino) {
        let table = self.table();
        let Some(entry) = table.get(ino) else { return };
        let mut dirs = self.forgotten.dirs.lock();
        dirs.extend(entry.names.iter().map(|(dir, _)| *dir));
        dirs.extend(entry.dir.is_some().then_some(ino));
        self.forgotten.any.store(true, Ordering::Relaxed);
    }

    /// Unloads the directories that can be, unless a request is being executed.
    fn unload(&self) {
        loop {
            let Some(alone) = self.forgotten.requests.try_write() else { return };
            let Some(dir) = self.next_forgotten() else { return };
            let mut table = self.table_mut();
            if !self.can_unload(&mut table, dir) {
                continue;
            }
            let above = table.get(dir).and_then(|entry| entry.names.first()).map(|(above, _)| *above);
            self.forgotten.dirs.lock().extend(above.filter(|above| *above != dir));
            self.all_loaded.store(false, Ordering::Release);
            let removed = table.unload(dir);
            drop(table);
            for (ino, _) in &removed.1 {
                self.upper.handles().take(*ino);
            }
            drop(alone);
            let count = removed.1.len();
            drop(removed);
            self.return_memory(count);
        }
    }

    fn next_forgotten(&self) -> Option<Ino> {
        let mut dirs = self.forgotten.dirs.lock();
        let next = dirs.iter().next().copied();
        match next {
            Some(dir) => dirs.remove(&dir),
            None => self.forgotten.any.swap(false, Ordering::Relaxed),
        };
        next
    }

    /// Whether a directory is loaded and all its inodes can be dropped. Remembers an inode because of which it cannot.
    fn can_unload(&self, table: &mut Table, dir: Ino) -> bool {
        let Some((entry, here)) = table.get(dir).and_then(|entry| Some((entry, entry.dir.as_ref()?))) else {
            return false;
        };
        let Some(names) = here.names.as_ref().filter(|_| !entry.is_removed()) else { return false };
        if here.blocker.is_some_and(|ino| table.get(ino).is_some_and(|entry| self.stays(ino, entry))) {
            return false;
        }
        // A listing under way relies on the order of names.
        if names.has_new() && (dir == ROOT || self.is_known(dir, Some(entry))) {
            return false;
        }
        let blocker = names.all().find_map(|(_, what)| match what {
            NameState::Inode(ino) => table.get(ino).filter(|entry| self.stays(ino, entry)).map(|_| ino),
            NameState::Whiteout => None,
        });
        if let Some(here) = table.dir_mut(dir) {
            here.blocker = blocker;
        }
        blocker.is_none()
    }

    /// Whether the table must keep an inode.
    fn stays(&self, ino: Ino, entry: &Entry) -> bool {
        let is_loaded = entry.dir.as_ref().is_some_and(|here| here.names.is_some());
        let is_counted = entry.generation.is_some() && self.counts_generations.load(Ordering::Relaxed);
        let is_busy = entry.linking || entry.spare > 0 || entry.held.is_some();
        is_loaded || is_counted || is_busy || self.is_known(ino, Some(entry))
    }

    /// Returns memory to the kernel, once enough has been freed.
    fn return_memory(&self, dropped: usize) {
        if self.forgotten.dropped.fetch_add(dropped, Ordering::Relaxed) + dropped >= RETURN_AFTER {
            self.forgotten.dropped.store(0, Ordering::Relaxed);
            sys::return_free_memory();
        }
    }
}

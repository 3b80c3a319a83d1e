//! Removing names: unlink, rmdir, and inodes that stay open without a name.

use super::inode_table::Name;
use super::load_dir::name as owned;
use super::rename::removed;
use super::{Found, Union};
use crate::fs::{FsError, Ino};
use crate::meta::Kind;
use crate::upper::Place;
use parking_lot::MutexGuard;
use std::os::fd::AsFd;

impl Union {
    /// Removes a name that is not a directory. Nothing is copied up but the attributes of a file that keeps other
    /// names.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        self.copy_up_if_hard_linked(self.removable(dir, name)?)?;
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = locks.change.lock();
        let name = owned(name);
        match self.removable(dir, &name)? {
            Found::Lower(ino) => self.hide(dir, &name, ino),
            Found::Upper(ino) => {
                self.hold_if_last(ino)?;
                let whiteout = self.covers(dir, &name)?;
                let parent = self.handle(dir)?;
                let at = Place { dir: parent.as_fd(), name: &name };
                self.upper.take_away(at, false, whiteout).inspect_err(|_| self.release(ino))?;
                self.table_mut().take_name(dir, &name, ino, whiteout);
                self.drop_if_unreferenced(ino);
                Ok(())
            }
        }
    }

    /// Finds a name, and fails if it is a directory.
    fn removable(&self, dir: Ino, name: &[u8]) -> Result<Found, FsError> {
        let found = self.find(dir, name)?.ok_or(FsError::NotFound)?;
        if self.kind(found.ino())? == Kind::Dir { Err(FsError::IsDir) } else { Ok(found) }
    }

    /// Copies up a file with several hard links before one of its names changes, since the link count of all of them
    /// changes.
    pub(super) fn copy_up_if_hard_linked(&self, found: Found) -> Result<(), FsError> {
        let ino = found.ino();
        let waits = self.table().get(ino).is_some_and(|entry| entry.linking);
        if waits || matches!(found, Found::Lower(_)) && self.lower.getattr(ino)?.nlink > 1 {
            self.copy_up(ino)?;
        }
        Ok(())
    }

    /// Hides a name that only the image has by a whiteout.
    fn hide(&self, dir: Ino, name: &Name, ino: Ino) -> Result<(), FsError> {
        let kind = self.kind(ino)?;
        let parent = self.handle(dir)?;
        self.upper.make_whiteout(Place { dir: parent.as_fd(), name })?;
        let mut table = self.table_mut();
        table.set_hidden(dir, name, true);
        // The inode may be open; it then stays in the table without links.
        if kind == Kind::Dir {
            table.count_subdirs(dir, -1);
        }
        table.insert(ino, removed(kind));
        drop(table);
        self.leave_removed(ino);
        self.drop_if_unreferenced(ino);
        Ok(())
    }

    /// Keeps a descriptor of an inode that is open before its last name is removed.
    pub(super) fn hold_if_last(&self, ino: Ino) -> Result<(), FsError> {
        let last = self.table().get(ino).is_some_and(|entry| entry.names.len() == 1);
        if !last || !self.is_referenced(ino) {
            return Ok(());
        }
        let handle = self.handle(ino)?;
        // Other hard links may not have been loaded yet; the inode is then found by them.
        if self.upper.backing().stat_without_times(handle.as_fd())?.nlink > 1 && self.kind(ino)? != Kind::Dir {
            self.load_all()?;
        }
        if let Some(entry) = self.table_mut().get_mut(ino).filter(|entry| entry.names.len() == 1) {
            self.leave_descriptor(ino, &handle);
            entry.held = Some(handle);
        }
        self.upper.handles().take(ino);
        Ok(())
    }

    /// Drops the descriptor that [`Union::hold_if_last`] kept, because the name stays. It may be read-only.
    pub(super) fn release(&self, ino: Ino) {
        let held = self.table_mut().get_mut(ino).and_then(|entry| entry.held.take());
        // Closed after the table's lock is released.
        if let Some(handle) = held {
            self.leave_no_descriptor(&handle);
        }
    }

    /// Frees an inode that has lost its last name and is not open.
    pub(super) fn drop_if_unreferenced(&self, ino: Ino) {
        if !self.is_referenced(ino) {
            self.drop_removed(ino);
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        match name {
            b"." => return Err(FsError::Invalid),
            b".." => return Err(FsError::NotEmpty),
            _ => {}
        }
        let found = self.find(dir, name)?.ok_or(FsError::NotFound)?;
        if self.kind(found.ino())? != Kind::Dir {
            return Err(FsError::NotDir);
        }
        self.copy_up_dir(dir)?;
        let dir_locks = self.dir_locks(&[dir, found.ino()]);
        let _changing = dir_locks.lock();
        let name = owned(name);
        if self.find(dir, &name)? != Some(found) {
            return Err(FsError::NotFound);
        }
        let ino = found.ino();
        self.check_empty(ino)?;
        if found == Found::Lower(ino) {
            return self.hide(dir, &name, ino);
        }
        let parent = self.handle(dir)?;
        let at = Place { dir: parent.as_fd(), name: &name };
        self.clear(ino, at)?;
        self.hold_if_last(ino)?;
        let whiteout = self.covers(dir, &name)?;
        self.upper.take_away(at, true, whiteout).inspect_err(|_| self.release(ino))?;
        let mut table = self.table_mut();
        table.take_name(dir, &name, ino, whiteout);
        table.count_subdirs(dir, -1);
        drop(table);
        self.drop_if_unreferenced(ino);
        Ok(())
    }

    /// Fails with ENOTEMPTY unless the merged directory is empty.
    pub(super) fn check_empty(&self, ino: Ino) -> Result<(), FsError> {
        let mut any = false;
        self.each_name(ino, 0, |_, _, _| {
            any = true;
            true
        })?;
        if any { Err(FsError::NotEmpty) } else { Ok(()) }
    }

    /// Removes the whiteouts from a directory that is empty in the union, so that it is empty for the backing file
    /// system too. The directory is made opaque first, so nothing of the image shows through. `at` is its name in the
    /// upper. The caller holds its `change`.
    pub(super) fn clear(&self, ino: Ino, at: Place) -> Result<(), FsError> {
        let handle = self.handle(ino)?;
        let below = self.upper.backing().list(handle.as_fd())?;
        let lower = self.table().get(ino).and_then(|entry| entry.dir.as_ref()?.lower);
        if below.is_empty() && lower.is_none() {
            return Ok(());
        }
        let before = self.upper.backing().stat(handle.as_fd())?;
        // Without marks, the opaque marker may be an entry in the directory, which is removed too.
        if lower.is_some() || !self.upper.has_marks() {
            self.upper.set_opaque_from_outside(handle.as_fd(), at)?;
            if let Some(dir) = self.table_mut().dir_mut(ino) {
                dir.lower = None;
            }
        }
        for entry in below {
            self.upper.backing().unlink(handle.as_fd(), &entry.name)?;
            self.table_mut().set_hidden(ino, &owned(&entry.name), false);
        }
        let times = crate::upper::timestamps(None, Some(before.mtime));
        Ok(self.upper.backing().utimens(handle.as_fd(), &times)?)
    }

    pub(super) fn kind(&self, ino: Ino) -> Result<Kind, FsError> {
        match self.table().get(ino) {
            Some(entry) => Ok(entry.kind),
            None => self.lower.kind(ino),
        }
    }

    /// Collects the locks of several directories, in the order of their inode numbers. Directories of the image have
    /// none: their content cannot change before they are copied up.
    pub(super) fn dir_locks(&self, dirs: &[Ino]) -> DirLocks {
        let mut dirs = dirs.to_vec();
        dirs.sort_unstable();
        dirs.dedup();
        DirLocks(dirs.into_iter().filter_map(|dir| self.locks_of(dir).ok()).collect())
    }
}

/// The locks of directories whose names are about to change.
pub(super) struct DirLocks(Vec<std::sync::Arc<super::Locks>>);

impl DirLocks {
    pub fn lock(&self) -> Vec<MutexGuard<'_, ()>> {
        self.0.iter().map(|locks| locks.change.lock()).collect()
    }
}

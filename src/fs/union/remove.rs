//! Removing names.

use super::load::name as owned;
use super::rename::removed;
use super::table::Name;
use super::{Found, Union, lock};
use crate::fs::{FsError, Ino};
use crate::meta::Kind;
use crate::upper::Place;
use std::os::fd::AsFd;
use std::sync::MutexGuard;

impl Union {
    /// Removes a name of what is no directory. Nothing is copied for it, but for the attributes of a file that keeps
    /// other names.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        self.bring_up_if_linked(self.removable(dir, name)?)?;
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = lock(&locks.change);
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
                self.settle_removed(ino);
                Ok(())
            }
        }
    }

    /// What has a name, if it is no directory.
    fn removable(&self, dir: Ino, name: &[u8]) -> Result<Found, FsError> {
        let found = self.find(dir, name)?.ok_or(FsError::NotFound)?;
        if self.kind(found.ino())? == Kind::Dir { Err(FsError::IsDir) } else { Ok(found) }
    }

    /// One of several names of a file cannot go without the others being told.
    pub(super) fn bring_up_if_linked(&self, found: Found) -> Result<(), FsError> {
        let ino = found.ino();
        let waits = self.table().get(ino).is_some_and(|entry| entry.linking);
        if waits || matches!(found, Found::Lower(_)) && self.lower.getattr(ino)?.nlink > 1 {
            self.copy_up(ino)?;
        }
        Ok(())
    }

    /// Hides what only the image has.
    fn hide(&self, dir: Ino, name: &Name, ino: Ino) -> Result<(), FsError> {
        let kind = self.kind(ino)?;
        let parent = self.handle(dir)?;
        self.upper.make_whiteout(Place { dir: parent.as_fd(), name })?;
        let mut table = self.table_mut();
        table.set_hidden(dir, name, true);
        // It may be open, and then has no links.
        if kind == Kind::Dir {
            table.count_subdirs(dir, -1);
        }
        table.insert(ino, removed(kind));
        drop(table);
        self.settle_removed(ino);
        Ok(())
    }

    /// Before the last name of an inode that is open goes: a way to it that needs no name.
    pub(super) fn hold_if_last(&self, ino: Ino) -> Result<(), FsError> {
        let last = self.table().get(ino).is_some_and(|entry| entry.names.len() == 1);
        if !last || !self.is_referenced(ino) {
            return Ok(());
        }
        let handle = self.handle(ino)?;
        // Other names may not have been seen yet; then it is found by them again.
        if self.upper.backing().stat_without_times(handle.as_fd())?.nlink > 1 && self.kind(ino)? != Kind::Dir {
            self.load_all()?;
        }
        if let Some(entry) = self.table_mut().get_mut(ino).filter(|entry| entry.names.len() == 1) {
            entry.held = Some(handle);
        }
        self.upper.handles().take(ino);
        Ok(())
    }

    /// The name has stayed after all, and the inode is found by it. What was held may be a descriptor that can only read.
    pub(super) fn release(&self, ino: Ino) {
        let held = self.table_mut().get_mut(ino).and_then(|entry| entry.held.take());
        // Closed here, behind the table's lock.
        drop(held);
    }

    /// A name is gone: if it was the last, and nobody has it open, so is the inode.
    pub(super) fn settle_removed(&self, ino: Ino) {
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
        let several = self.several(&[dir, found.ino()]);
        let _changing = several.lock();
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
        self.settle_removed(ino);
        Ok(())
    }

    /// That nothing can be seen in a directory.
    pub(super) fn check_empty(&self, ino: Ino) -> Result<(), FsError> {
        let mut any = false;
        self.each_name(ino, 0, |_, _, _| {
            any = true;
            true
        })?;
        if any { Err(FsError::NotEmpty) } else { Ok(()) }
    }

    /// Takes the whiteouts out of a directory in which nothing can be seen, so that the file system below takes it for
    /// empty too. It hides the image's from then on, so nothing comes to light. `at` is where the directory is. The caller
    /// holds its `change`.
    pub(super) fn clear(&self, ino: Ino, at: Place) -> Result<(), FsError> {
        let handle = self.handle(ino)?;
        let below = self.upper.backing().list(handle.as_fd())?;
        let lower = self.table().get(ino).and_then(|entry| entry.dir.as_ref()?.lower);
        if below.is_empty() && lower.is_none() {
            return Ok(());
        }
        let before = self.upper.backing().stat(handle.as_fd())?;
        // Without marks what makes it opaque may be an entry in it, which is removed too.
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

    /// The locks of several directories, to be taken in the order of their numbers. Those of the image have none: what
    /// is in them cannot change before they are copied up.
    pub(super) fn several(&self, dirs: &[Ino]) -> Several {
        let mut dirs = dirs.to_vec();
        dirs.sort_unstable();
        dirs.dedup();
        Several(dirs.into_iter().filter_map(|dir| self.locks_of(dir).ok()).collect())
    }
}

/// Directories whose names are about to change.
pub(super) struct Several(Vec<std::sync::Arc<super::Locks>>);

impl Several {
    pub fn lock(&self) -> Vec<MutexGuard<'_, ()>> {
        self.0.iter().map(|locks| lock(&locks.change)).collect()
    }
}

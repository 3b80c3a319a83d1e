//! Attributes of the union's inodes: getattr, setattr, readlink and statfs.

use super::inode_table::Data;
use super::{TRIES, Union};
use crate::backing::{Handle, Object};
use crate::fs::attr::{Attr, Change, SetTime, Statfs};
use crate::fs::{FsError, Ino, ROOT};
use crate::meta::{Kind, PERMISSION_BITS, Time};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::os::fd::AsFd;

impl Union {
    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        self.ensure_loaded(ino)?;
        for _ in 0..TRIES {
            if let Some(attr) = self.try_getattr(ino)? {
                return Ok(attr);
            }
        }
        Err(FsError::Stale(ino))
    }

    fn try_getattr(&self, ino: Ino) -> Result<Option<Attr>, FsError> {
        let (place, raw) = {
            let table = self.table();
            let Some(entry) = table.get(ino) else {
                drop(table);
                return self.lower.getattr(ino).map(Some);
            };
            let Some(raw) = entry.raw else {
                drop(table);
                return self.lower.getattr(ino).map(|attr| Some(Attr { nlink: 0, ..attr }));
            };
            (entry.names.first().filter(|_| entry.held.is_none() && ino != ROOT).cloned(), raw)
        };
        let object = match (self.upper.handles().get(ino), place) {
            (Some(open), _) => self.upper.object(open.as_fd())?,
            (None, None) => self.upper.object(self.handle(ino)?.as_fd())?,
            (None, Some((dir, name))) => {
                let dir = match self.handle(dir) {
                    // The directory has been removed, after its entries were moved or removed.
                    Err(FsError::Stale(_)) => return Ok(None),
                    dir => dir?,
                };
                match self.upper.object_at(dir.as_fd(), &name) {
                    Ok(object) => object,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(e.into()),
                }
            }
        };
        // The name belongs to another object by now.
        if object.raw.ino != raw { Ok(None) } else { self.attr_of(ino, &object).map(Some) }
    }

    pub(super) fn attr_of(&self, ino: Ino, object: &Object) -> Result<Attr, FsError> {
        let table = self.table();
        let entry = table.get(ino).ok_or(FsError::Stale(ino))?;
        let nlink = match &entry.dir {
            Some(_) if entry.is_removed() => 0,
            Some(_) if self.static_nlink => 1,
            Some(dir) => 2 + dir.subdirs,
            None if entry.is_removed() && !entry.linking => 0,
            None => object.raw.nlink.saturating_sub(entry.spare),
        };
        let (attr, data) = (Attr { kind: entry.kind, ..Attr::of(ino, object, nlink) }, entry.data);
        drop(table);
        Ok(match data {
            Data::Lower(origin, _) => Attr { blocks: self.lower.getattr(origin)?.blocks, ..attr },
            Data::Upper | Data::Missing => attr,
        })
    }

    /// Sets attributes. Only a change of size touches a file's data.
    pub fn setattr(&self, ino: Ino, change: &Change) -> Result<Attr, FsError> {
        if change.size.is_some() {
            self.is_file(ino)?;
        }
        match change.size {
            Some(_) => self.copy_up_attributes(ino)?,
            None => self.copy_up(ino)?,
        }
        let handle = self.handle(ino)?;
        let owner = (change.uid, change.gid);
        // The times of a file that the kernel caches are not queried: a query would give later changes other times than
        // the kernel has.
        let times_are_kernels = change.ctime.is_some() && self.kind(ino)? == Kind::File;
        let before = match times_are_kernels {
            true => self.upper.object_without_times(handle.as_fd())?,
            false => self.upper.object(handle.as_fd())?,
        };
        let expected = changed(self.attr_of(ino, &before)?, change);
        let changes_owner = owner != (None, None) || change.mode.is_some();
        if changes_owner {
            let mode = change.mode.map(|mode| mode & PERMISSION_BITS);
            self.upper.set_owner_and_mode(handle.as_fd(), &before, owner, mode)?;
        }
        // The irreversible change, truncation, is made last.
        self.set_size_and_times(ino, &handle, change).inspect_err(|_| {
            if changes_owner {
                let owner = (Some(before.uid), Some(before.gid));
                let undone = self.upper.set_owner_and_mode(handle.as_fd(), &before, owner, Some(before.mode));
                if let Err(e) = undone {
                    tracing::error!("cannot restore the owner and mode of inode {ino}: {e}");
                }
            }
        })?;
        if change.size == Some(before.raw.size) && change.mtime.is_none() && !times_are_kernels {
            // The kernel does not count that as a change, so the mtime is restored, whatever the backing file system
            // set.
            let mtime = crate::upper::timestamps(None, Some(before.raw.mtime));
            if let Err(e) = self.upper.backing().utimens(handle.as_fd(), &mtime) {
                tracing::warn!("cannot restore the modification time of inode {ino}: {e}");
            }
        }
        if let (Some(set), Some(entry)) = (change.mtime, self.table_mut().get_mut(ino)) {
            entry.kernel_mtime = match set {
                SetTime::To(time) => Some(time),
                SetTime::Now => None,
            };
        }
        let known = self.table().get(ino).and_then(|entry| entry.kernel_mtime).filter(|_| times_are_kernels);
        let after = match (known, change.ctime) {
            (Some(mtime), Some(ctime)) => self
                .upper
                .object_without_times(handle.as_fd())
                .map_err(FsError::from)
                .and_then(|object| self.attr_of(ino, &object).map(|attr| Attr { mtime, ctime, ..attr })),
            _ => self.getattr(ino),
        };
        // The change has been made, so an error here must not fail the call.
        Ok(after.unwrap_or(expected))
    }

    fn set_size_and_times(&self, ino: Ino, handle: &Handle, change: &Change) -> Result<(), FsError> {
        if let Some(size) = change.size {
            self.truncate(ino, size)?;
        }
        if change.atime.is_none() && change.mtime.is_none() {
            return Ok(());
        }
        let one = |time: Option<SetTime>| match time {
            Some(SetTime::To(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
            Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        let times = Timestamps { last_access: one(change.atime), last_modification: one(change.mtime) };
        match self.upper.backing().utimens(handle.as_fd(), &times) {
            // A truncation cannot be undone, so this error must not fail the call.
            Err(e) if change.size.is_some() => tracing::warn!("cannot set the times of the truncated inode {ino}: {e}"),
            set => set?,
        }
        Ok(())
    }

    /// Returns a symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        if self.kind(ino)? != Kind::Symlink {
            return Err(FsError::WrongType);
        }
        let up = self.table().get(ino).is_some_and(|entry| entry.raw.is_some());
        if !up {
            return Ok(self.lower.readlink(ino)?.into_owned());
        }
        let handle = self.handle(ino)?;
        let object = self.upper.object(handle.as_fd())?;
        Ok(self.upper.readlink(handle.as_fd(), &object)?)
    }

    /// Returns the block and inode counts of the upper directory's file system.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        Ok(self.upper.backing().space(self.upper.root().as_fd())?.into())
    }
}

/// Predicts the attributes after a change, as far as they can be known.
fn changed(before: Attr, change: &Change) -> Attr {
    let time = |set: Option<SetTime>, old: Time| match set {
        Some(SetTime::To(time)) => time,
        Some(SetTime::Now) | None => old,
    };
    Attr {
        mode: change.mode.map_or(before.mode, |mode| (mode & PERMISSION_BITS) as u16),
        uid: change.uid.unwrap_or(before.uid),
        gid: change.gid.unwrap_or(before.gid),
        size: change.size.unwrap_or(before.size),
        atime: time(change.atime, before.atime),
        mtime: time(change.mtime, before.mtime),
        ..before
    }
}

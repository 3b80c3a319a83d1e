//! New objects and new names.

use super::load::name as owned;
use super::table::{Dir, Entry, Name, Names};
use super::{Union, lock};
use crate::backing::{Handle, Object, acl};
use crate::fs::{Attr, FsError, Ino, New};
use crate::meta::{Kind, PERMISSION_BITS};
use crate::name::NAME_MAX;
use crate::upper::{Draft, Place};
use crate::whiteout::is_whiteout_device;
use std::borrow::Cow;
use std::os::fd::AsFd;

const SET_GROUP: u32 = 0o2000;

/// A name that can be made.
pub(super) fn check_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"" => Err(FsError::NotFound),
        b"." | b".." => Err(FsError::Exists),
        long if long.len() > NAME_MAX => Err(FsError::NameTooLong),
        _ => Ok(()),
    }
}

impl Union {
    /// Makes an object under a name that nothing has.
    pub fn make(&self, dir: Ino, name: &[u8], new: &New) -> Result<Attr, FsError> {
        check_name(name)?;
        if new.kind == Kind::Char && is_whiteout_device(new.rdev) {
            // It would be taken for a whiteout; the kernel's overlayfs refuses it too.
            return Err(FsError::NotPermitted);
        }
        if self.find(dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = lock(&locks.change);
        self.check_alive(dir)?;
        let whiteout = self.vacant(dir, name)?;
        let mut draft = self.draft_new(dir, new)?;
        draft.opaque = new.kind == Kind::Dir && self.covers(dir, name)?;
        let name = owned(name);
        let parent = self.handle(dir)?;
        let made = self.put_new(&draft, Place { dir: parent.as_fd(), name: &name }, whiteout)?;
        let (handle, object, ino) = made;
        let mut entry = Entry::new(new.kind, Some(object.raw.ino));
        entry.capable = false;
        entry.kernel_mtime = (new.kind == Kind::File).then_some(object.raw.mtime);
        if new.kind == Kind::Dir {
            entry.dir = Some(Dir { lower: None, names: Some(Names::default()), subdirs: 0, default_acl: None });
        }
        self.enter_new(dir, &name, ino, entry);
        self.upper.handles().put(ino, handle);
        let made = self.attr_of(ino, &object)?;
        // The kernel keeps the times of files. Of anything else, putting it in place was the last change; that has happened,
        // so it must not fail any more.
        if new.kind == Kind::File { Ok(made) } else { Ok(self.getattr(ino).unwrap_or(made)) }
    }

    /// Puts a new object in place: its descriptor, what it is, its number.
    fn put_new(&self, draft: &Draft, at: Place, whiteout: bool) -> Result<(Handle, Object, Ino), FsError> {
        if !whiteout && let Some((handle, object, number)) = self.upper.make_in_place(draft, at)? {
            return Ok((handle, object, number));
        }
        let made = self.upper.make(draft)?;
        self.upper.claim_name(made.handle.as_fd(), at.name)?;
        // Asked for now: once it is in place nothing may fail.
        let (object, number) = (self.upper.object_without_times(made.handle.as_fd())?, made.number);
        let handle = if whiteout { made.put_over_whiteout(at)? } else { made.put(at)? };
        Ok((handle, object, number))
    }

    fn enter_new(&self, dir: Ino, name: &Name, ino: Ino, entry: Entry) {
        let is_dir = entry.dir.is_some();
        let mut table = self.table_mut();
        table.insert(ino, entry);
        table.add_name(dir, name, ino);
        if is_dir {
            table.count_subdirs(dir, 1);
        }
    }

    pub(super) fn check_alive(&self, dir: Ino) -> Result<(), FsError> {
        match self.table().get(dir) {
            Some(entry) if entry.is_removed() => Err(FsError::NotFound),
            _ => Ok(()),
        }
    }

    /// What a new object is, with what its directory hands down: its group, the bit that does so, and ACLs.
    fn draft_new<'a>(&self, dir: Ino, new: &New<'a>) -> Result<Draft<'a>, FsError> {
        let parent = self.getattr(dir)?;
        let inherits = u32::from(parent.mode) & SET_GROUP != 0;
        let gid = if inherits { parent.gid } else { new.gid };
        let mut mode = new.mode & PERMISSION_BITS;
        let mut xattrs = Vec::new();
        if new.kind == Kind::Symlink {
            mode = 0o777;
        } else if let Some(default) = self.default_acl(dir)? {
            let inherited = acl::inherit(&default, mode, new.kind == Kind::Dir).ok_or(FsError::Damaged("an ACL"))?;
            (mode, xattrs) = inherited;
        } else {
            mode &= !new.umask;
        }
        if inherits && new.kind == Kind::Dir {
            mode |= SET_GROUP;
        }
        Ok(Draft {
            number: self.upper.new_number()?,
            kind: new.kind,
            mode,
            uid: new.uid,
            gid,
            rdev: new.rdev,
            target: Cow::Borrowed(new.target),
            xattrs,
            times: None,
            size: 0,
            opaque: false,
            metacopy: false,
            redirect: None,
        })
    }

    /// Gives an inode that is no directory one more name.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attr, FsError> {
        check_name(name)?;
        if self.kind(ino)? == Kind::Dir {
            return Err(FsError::NotPermitted);
        }
        if self.find(dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        if self.table().get(ino).is_some_and(Entry::is_removed) {
            return Err(FsError::NotFound);
        }
        self.copy_up(ino)?;
        self.settle_data(ino)?;
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = lock(&locks.change);
        self.check_alive(dir)?;
        let whiteout = self.vacant(dir, name)?;
        let (handle, parent) = (self.handle(ino)?, self.handle(dir)?);
        let before = self.getattr(ino)?;
        self.upper.claim_name(handle.as_fd(), name)?;
        self.upper.link(handle.as_fd(), Place { dir: parent.as_fd(), name }, whiteout)?;
        self.table_mut().add_name(dir, &owned(name), ino);
        // It has happened, so it must not fail any more.
        Ok(self.getattr(ino).unwrap_or(Attr { nlink: before.nlink + 1, ..before }))
    }
}

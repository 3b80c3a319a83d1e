//! Creation of objects and of hard links: create, mkdir, mknod, symlink, link.

use super::Union;
use super::inode_table::{Dir, Entry, Name, Names};
use super::load_dir::name as owned;
use crate::backing::{Handle, Object, acl};
use crate::fs::{Attr, FsError, Ino, New};
use crate::meta::{Kind, PERMISSION_BITS};
use crate::name::NAME_MAX;
use crate::upper::{Draft, Place};
use crate::whiteout::is_whiteout_device;
use std::borrow::Cow;
use std::os::fd::AsFd;

const SET_GROUP: u32 = 0o2000;

/// Checks that a name can be created: ENOENT for an empty name, EEXIST for `.` and `..`, ENAMETOOLONG.
pub(super) fn check_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"" => Err(FsError::NotFound),
        b"." | b".." => Err(FsError::Exists),
        long if long.len() > NAME_MAX => Err(FsError::NameTooLong),
        _ => Ok(()),
    }
}

impl Union {
    /// Creates an object under a name that must not exist.
    pub fn make(&self, dir: Ino, name: &[u8], new: &New) -> Result<Attr, FsError> {
        check_name(name)?;
        if new.kind == Kind::Char && is_whiteout_device(new.rdev) {
            // A character device 0:0 would be a whiteout; kernel overlayfs refuses it too.
            return Err(FsError::NotPermitted);
        }
        if self.find(dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = locks.change.lock();
        self.check_alive(dir)?;
        let whiteout = self.prepare_name(dir, name)?;
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
            entry.dir = Some(Dir::new(None, Some(Names::default())));
        }
        self.enter_new(dir, &name, ino, entry);
        self.upper.handles().put(ino, handle);
        let made = self.attr_of(ino, &object)?;
        // The kernel keeps the times of regular files. For anything else, the rename into place was the last change, so
        // the attributes are read again; the object exists, so an error here must not fail the call.
        if new.kind == Kind::File { Ok(made) } else { Ok(self.getattr(ino).unwrap_or(made)) }
    }

    /// Moves a new object into place. Returns its descriptor, its attributes and its inode number.
    fn put_new(&self, draft: &Draft, at: Place, whiteout: bool) -> Result<(Handle, Object, Ino), FsError> {
        if !whiteout && let Some((handle, object, number)) = self.upper.make_in_place(draft, at)? {
            return Ok((handle, object, number));
        }
        let made = self.upper.make(draft)?;
        self.upper.claim_name(made.handle.as_fd(), at.name)?;
        // Read before the object is in place: after that nothing may fail.
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

    /// Describes a new object, with what it inherits from its directory: the group, the set-group-ID bit, and ACLs.
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

    /// Creates a hard link to an inode that is not a directory.
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
        self.copy_data_bound_to_path(ino)?;
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = locks.change.lock();
        self.check_alive(dir)?;
        let whiteout = self.prepare_name(dir, name)?;
        let (handle, parent) = (self.handle(ino)?, self.handle(dir)?);
        let before = self.getattr(ino)?;
        self.upper.claim_name(handle.as_fd(), name)?;
        self.upper.link(handle.as_fd(), Place { dir: parent.as_fd(), name }, whiteout)?;
        self.table_mut().add_name(dir, &owned(name), ino);
        // The link exists, so an error here must not fail the call.
        Ok(self.getattr(ino).unwrap_or(Attr { nlink: before.nlink + 1, ..before }))
    }
}

//! Creation of objects: complete in the work directory first, then moved into place by one system call.

use super::Upper;
use crate::backing::{self, Handle, Object, acl, share};
use crate::meta::{Kind, Time};
use crate::whiteout::Mark;
use rustix::fs::{OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A name in an upper directory.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// The name.
    pub name: &'a [u8],
}

/// The description of an object to be created.
pub struct Draft<'a> {
    /// Its inode number; `None` if it is derived from the backing file system's ([`Upper::new_number`]).
    pub number: Option<u64>,
    /// Kind.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// A symbolic link's target.
    pub target: Cow<'a, [u8]>,
    /// Extended attributes, by the names that users see.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access and modification time; the current time if `None`.
    pub times: Option<(Time, Time)>,
    /// The size of a file, all of it a hole.
    pub size: u64,
    /// Whether the directory is opaque.
    pub opaque: bool,
    /// Whether the file is a metacopy: its data is in the lower layers.
    pub metacopy: bool,
    /// The redirect: the path in the lower layers.
    pub redirect: Option<Vec<u8>>,
}

/// An object in the work directory. It is removed when this is dropped, unless it was moved into place.
pub struct Made<'a> {
    upper: &'a Upper,
    name: String,
    kind: Kind,
    placed: bool,
    /// Its descriptor.
    pub handle: Handle,
    /// The backing file system's inode number.
    pub raw_ino: u64,
    /// Its inode number in the union.
    pub number: u64,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if !self.placed {
            self.upper.discard(&self.name, self.kind == Kind::Dir);
        }
    }
}

impl Made<'_> {
    /// Moves the object to a name that does not exist.
    pub fn put(mut self, at: Place) -> io::Result<Handle> {
        self.upper.rename(self.here(), at, RenameFlags::NOREPLACE)?;
        self.placed = true;
        self.upper.drop_marker(at);
        Ok(self.handle.clone())
    }

    /// Moves the object to the name of a whiteout, which is removed.
    pub fn put_over_whiteout(mut self, at: Place) -> io::Result<Handle> {
        let flags = if self.kind == Kind::Dir { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        self.upper.rename(self.here(), at, flags)?;
        self.placed = true;
        self.upper.drop_marker(at);
        if self.kind != Kind::Dir {
            return Ok(self.handle.clone());
        }
        // The whiteout has the name in the work directory now.
        self.upper.discard(&self.name, false);
        Ok(self.handle.clone())
    }

    /// Moves a file that is about to get several names to where it survives a crash ([`Upper::unfinished`]).
    pub fn keep_for_links(mut self, number: u64) -> io::Result<Handle> {
        let number = number.to_string();
        let to = Place { dir: self.upper.links.as_fd(), name: number.as_bytes() };
        self.upper.rename(self.here(), to, RenameFlags::NOREPLACE)?;
        self.placed = true;
        Ok(self.handle.clone())
    }

    fn here(&self) -> Place<'_> {
        Place { dir: self.upper.tmp.as_fd(), name: self.name.as_bytes() }
    }
}

impl Upper {
    /// Creates a complete object in the work directory.
    pub fn make(&self, draft: &Draft) -> io::Result<Made<'_>> {
        let name = self.serial();
        let stored = self.stored_kind(draft);
        let opened = self.make_bare(draft, stored, Place { dir: self.tmp.as_fd(), name: name.as_bytes() })?;
        self.finish(draft, stored, name.clone(), opened).inspect_err(|_| {
            self.discard(&name, stored == Kind::Dir);
        })
    }

    /// Returns the kind of the object on disk.
    fn stored_kind(&self, draft: &Draft) -> Kind {
        let native = match draft.kind {
            Kind::File | Kind::Dir => true,
            // An inode of the image must keep its inode number, and so needs a form that can carry it.
            Kind::Symlink => {
                draft.number.is_none_or(|number| number >= super::FIRST_OWN)
                    && self.is_native(draft.kind, 0, draft.uid, draft.gid)
            }
            _ => false,
        };
        if self.overrides.is_none() || native { draft.kind } else { Kind::File }
    }

    /// Returns the mode on disk: for an unprivileged user, one that grants access to the user itself.
    fn stored_mode(&self, draft: &Draft) -> u32 {
        if self.overrides.is_none() || self.is_native(draft.kind, draft.mode, draft.uid, draft.gid) {
            return draft.mode;
        }
        draft.mode & 0o777 | if draft.kind == Kind::Dir { 0o700 } else { 0o600 }
    }

    /// Creates the object without attributes. A regular file is returned open.
    fn make_bare(&self, draft: &Draft, stored: Kind, at: Place) -> io::Result<Option<OwnedFd>> {
        let Place { dir, name } = at;
        match stored {
            Kind::Dir => self.backing.mkdir(dir, name, 0o700)?,
            Kind::File => {
                return self.backing.open(dir, name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, 0o600).map(Some);
            }
            Kind::Symlink => self.backing.symlink(&draft.target, dir, name)?,
            other => self.backing.mknod(dir, name, other.bits() | 0o600, draft.rdev)?,
        }
        Ok(None)
    }

    fn finish(&self, draft: &Draft, stored: Kind, name: String, opened: Option<OwnedFd>) -> io::Result<Made<'_>> {
        let handle = share(match opened {
            Some(file) => file,
            None => self.open_entry(self.tmp.as_fd(), name.as_bytes(), stored.bits())?.0,
        });
        let fd = handle.as_fd();
        let raw_ino = self.backing.stat_without_times(fd)?.ino;
        if self.overrides.is_none() && (draft.uid, draft.gid) != self.own {
            self.backing.chown(fd, Some(draft.uid), Some(draft.gid))?;
        }
        if stored != Kind::Symlink {
            self.backing.chmod(fd, self.stored_mode(draft))?;
        }
        if self.overrides.is_some() && stored != Kind::Symlink {
            self.override_stat(draft, fd)?;
            if draft.kind == Kind::Symlink {
                self.write_all(fd, &draft.target, 0)?;
            }
        }
        // Before the attributes: a change of size removes capabilities.
        if draft.size > 0 && stored == Kind::File {
            self.backing.truncate(fd, draft.size)?;
        }
        if draft.opaque {
            self.set_opaque(fd)?;
        }
        // Where no attribute can be stored, those of the lower layers are dropped; kernel overlayfs ignores such errors
        // too.
        for (name, value) in draft.xattrs.iter().filter(|_| self.has_marks()) {
            self.set_xattr(fd, name, value, XattrFlags::empty())?;
        }
        let marks = [
            (draft.metacopy, Mark::Metacopy, &b""[..]),
            (draft.redirect.is_some(), Mark::Redirect, draft.redirect.as_deref().unwrap_or_default()),
        ];
        for (_, mark, value) in marks.into_iter().filter(|(wanted, ..)| *wanted) {
            self.set_mark(fd, mark, value)?;
        }
        let number = self.give_number(fd, raw_ino, draft.number)?;
        if let Some((atime, mtime)) = draft.times {
            self.backing.utimens(fd, &timestamps(Some(atime), Some(mtime)))?;
        }
        Ok(Made { upper: self, name, kind: stored, placed: false, handle, raw_ino, number })
    }

    fn override_stat(&self, draft: &Draft, fd: BorrowedFd) -> io::Result<()> {
        if self.is_native(draft.kind, draft.mode, draft.uid, draft.gid) {
            return Ok(());
        }
        let value = backing::print(draft.kind, draft.mode, draft.uid, draft.gid, draft.rdev);
        self.set_mark(fd, Mark::Override, value.as_bytes())
    }

    /// Creates a new file directly at its name, without the work directory, if one system call creates all of it but
    /// its inode number: a file that a crash leaves without a number gets one when it is loaded. `None` if more calls
    /// are needed.
    pub fn make_in_place(&self, draft: &Draft, at: Place) -> io::Result<Option<(Handle, Object, u64)>> {
        let plain = draft.kind == Kind::File
            && (draft.uid, draft.gid) == self.own
            && draft.mode & (0o7000 | self.umask) == 0
            && draft.xattrs.is_empty()
            && !self.is_ambiguous(at.name)
            && (self.overrides.is_none() || self.is_native(draft.kind, draft.mode, draft.uid, draft.gid));
        if !plain {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let handle = share(self.backing.open(at.dir, at.name, flags, draft.mode)?);
        let numbered = self
            .object_without_times(handle.as_fd())
            .and_then(|object| Ok((object, self.give_number(handle.as_fd(), object.raw.ino, draft.number)?)));
        match numbered {
            Ok((object, number)) => {
                self.drop_marker(at);
                Ok(Some((handle, object, number)))
            }
            Err(e) => {
                self.backing.unlink(at.dir, at.name)?;
                Err(e)
            }
        }
    }

    /// Creates a hard link, also in place of a whiteout.
    pub fn link(&self, fd: BorrowedFd, at: Place, over_whiteout: bool) -> io::Result<()> {
        if !over_whiteout {
            self.backing.link(fd, at.dir, at.name)?;
            self.drop_marker(at);
            return Ok(());
        }
        let name = self.serial();
        let here = Place { dir: self.tmp.as_fd(), name: name.as_bytes() };
        self.backing.link(fd, here.dir, here.name)?;
        self.rename(here, at, RenameFlags::empty()).inspect_err(|_| {
            self.discard(&name, false);
        })?;
        self.drop_marker(at);
        Ok(())
    }

    /// Returns the inode numbers of hard-linked files whose copy-up a crash interrupted.
    pub fn unfinished(&self) -> io::Result<Vec<u64>> {
        let names = self.backing.list(self.links.as_fd())?;
        Ok(names.iter().filter_map(|entry| str::from_utf8(&entry.name).ok()?.parse().ok()).collect())
    }

    /// Opens one of [`Upper::unfinished`].
    pub fn open_unfinished(&self, number: u64) -> io::Result<(Handle, Object)> {
        let name = number.to_string();
        let object = self.object_at(self.links.as_fd(), name.as_bytes())?;
        let (fd, _) = self.open_entry(self.links.as_fd(), name.as_bytes(), object.raw.mode)?;
        Ok((share(fd), object))
    }

    /// Removes the work directory's link to a file that has all its names.
    pub fn finished(&self, number: u64) -> io::Result<()> {
        self.backing.unlink(self.links.as_fd(), number.to_string().as_bytes())
    }

    /// Removes an object in the work directory, and returns whether it is gone. After a failure the next mount removes
    /// it.
    pub(super) fn discard(&self, name: &str, is_dir: bool) -> bool {
        let gone = if is_dir {
            super::open::wipe(self.backing(), self.tmp.as_fd(), name.as_bytes())
        } else {
            self.backing.unlink(self.tmp.as_fd(), name.as_bytes())
        };
        if let Err(e) = &gone {
            tracing::warn!("cannot remove {name} from the work directory, the next mount will: {e}");
        }
        gone.is_ok()
    }

    /// Sets an attribute under the name that users see. An ACL changes the mode on disk; where owner and mode may be
    /// stored in an attribute, the mode on disk must still grant access to the user that serves the mount.
    pub fn set_xattr(&self, fd: BorrowedFd, name: &[u8], value: &[u8], flags: XattrFlags) -> io::Result<()> {
        let stored = self.dialect.stored(name);
        if self.overrides.is_some()
            && *stored == *acl::ACCESS
            && let Some(mode) = acl::mode(value, 0)
        {
            let is_dir = Kind::of(self.backing.stat_without_times(fd)?.mode) == Some(Kind::Dir);
            let open = acl::with_mode(value.to_vec(), mode | if is_dir { 0o700 } else { 0o600 });
            return self.backing.set_xattr(fd, name, &open, flags);
        }
        self.backing.set_xattr(fd, &stored, value, flags)
    }

    /// Writes all of `bytes`.
    pub fn write_all(&self, fd: BorrowedFd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.backing.write(fd, bytes, offset)?;
            if written == 0 {
                return Err(Errno::IO.into());
            }
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }
}

/// Converts two times to the kernel's form; `None` leaves a time as it is (UTIME_OMIT).
pub fn timestamps(atime: Option<Time>, mtime: Option<Time>) -> Timestamps {
    let one = |time: Option<Time>| match time {
        Some(time) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    };
    Timestamps { last_access: one(atime), last_modification: one(mtime) }
}

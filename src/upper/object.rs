//! Making objects: whole in the work directory first, then put in place by one call.

use super::Upper;
use crate::backing::{self, Handle, Object, acl, share};
use crate::meta::{Kind, Time};
use crate::whiteout::Mark;
use rustix::fs::{OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A name in a directory of the upper.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// The name.
    pub name: &'a [u8],
}

/// An object that is to be made.
pub struct Draft<'a> {
    /// Its inode number; `None` if that follows from the file system's ([`Upper::new_number`]).
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
    /// Extended attributes, by the names that users know.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access and modification time; now, if not given.
    pub times: Option<(Time, Time)>,
    /// The size of a file: a hole.
    pub size: u64,
    /// The directory hides what the lower layers have.
    pub opaque: bool,
    /// The file's data is the lower layers'.
    pub metacopy: bool,
    /// Where the lower layers have it.
    pub redirect: Option<Vec<u8>>,
}

/// An object in the work directory. One that is not put in place is taken away again when this is dropped.
pub struct Made<'a> {
    upper: &'a Upper,
    name: String,
    kind: Kind,
    placed: bool,
    /// Its descriptor.
    pub handle: Handle,
    /// Its inode number below.
    pub raw_ino: u64,
    /// Its inode number for ever.
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
    /// Puts it where nothing is.
    pub fn put(mut self, at: Place) -> io::Result<Handle> {
        self.upper.rename(self.here(), at, RenameFlags::NOREPLACE)?;
        self.placed = true;
        self.upper.drop_marker(at);
        Ok(self.handle.clone())
    }

    /// Puts it where a whiteout is, which goes.
    pub fn put_over_whiteout(mut self, at: Place) -> io::Result<Handle> {
        let flags = if self.kind == Kind::Dir { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        self.upper.rename(self.here(), at, flags)?;
        self.placed = true;
        self.upper.drop_marker(at);
        if self.kind != Kind::Dir {
            return Ok(self.handle.clone());
        }
        // The name here is the whiteout's now.
        self.upper.discard(&self.name, false);
        Ok(self.handle.clone())
    }

    /// Makes it one that a crash does not lose: a file that is about to get several names ([`Upper::unfinished`]).
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
    /// Makes an object, whole, in the work directory.
    pub fn make(&self, draft: &Draft) -> io::Result<Made<'_>> {
        let name = self.serial();
        let stored = self.stored_kind(draft);
        let opened = self.make_bare(draft, stored, Place { dir: self.tmp.as_fd(), name: name.as_bytes() })?;
        self.finish(draft, stored, name.clone(), opened).inspect_err(|_| {
            self.discard(&name, stored == Kind::Dir);
        })
    }

    /// The kind of object that stands for the draft on disk.
    fn stored_kind(&self, draft: &Draft) -> Kind {
        let native = match draft.kind {
            Kind::File | Kind::Dir => true,
            // One that the image has must keep its number, and so needs a form that can carry it.
            Kind::Symlink => {
                draft.number.is_none_or(|number| number >= super::FIRST_OWN)
                    && self.is_native(draft.kind, 0, draft.uid, draft.gid)
            }
            _ => false,
        };
        if self.overrides.is_none() || native { draft.kind } else { Kind::File }
    }

    /// The mode that an object is made with: for a plain user one that lets himself in.
    fn stored_mode(&self, draft: &Draft) -> u32 {
        if self.overrides.is_none() || self.is_native(draft.kind, draft.mode, draft.uid, draft.gid) {
            return draft.mode;
        }
        draft.mode & 0o777 | if draft.kind == Kind::Dir { 0o700 } else { 0o600 }
    }

    /// A file is open then.
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
        // Before the attributes: it would take capabilities away.
        if draft.size > 0 && stored == Kind::File {
            self.backing.truncate(fd, draft.size)?;
        }
        if draft.opaque {
            self.set_opaque(fd)?;
        }
        // Where no attribute can be kept, those of the lower layers' are not: nor does the kernel's overlayfs insist.
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

    /// Makes a new file where nothing is, without the work directory, if one call does it whole but for its number: a
    /// file that a crash leaves without one gets one when it is found. `None` if it takes more than that.
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

    /// Gives an object one more name, also where a whiteout is.
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

    /// The files that a crash left before they had all their names: their numbers.
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

    /// The file has all its names.
    pub fn finished(&self, number: u64) -> io::Result<()> {
        self.backing.unlink(self.links.as_fd(), number.to_string().as_bytes())
    }

    /// Removes something in the work directory. Where that fails the next mount does it. Whether it is gone.
    pub(super) fn discard(&self, name: &str, is_dir: bool) -> bool {
        let gone = if is_dir {
            super::open::wipe(self.backing(), self.tmp.as_fd(), name.as_bytes())
        } else {
            self.backing.unlink(self.tmp.as_fd(), name.as_bytes())
        };
        if let Err(e) = &gone {
            tracing::warn!("{name} stays in the work directory until the next mount: {e}");
        }
        gone.is_ok()
    }

    /// Sets an attribute under the name that users know. An ACL changes the mode on disk; where the mode that is seen may be
    /// kept elsewhere, the one on disk goes on to let its owner in, who is the user that serves the mount.
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

    /// Writes all of it.
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

/// The kernel's form of two times; one that is not given is left as it is.
pub fn timestamps(atime: Option<Time>, mtime: Option<Time>) -> Timestamps {
    let one = |time: Option<Time>| match time {
        Some(time) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    };
    Timestamps { last_access: one(atime), last_modification: one(mtime) }
}

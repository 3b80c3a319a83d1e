//! The upper directory: the writable layer, in the format of kernel overlayfs, and its work directory.
//!
//! This module creates, finds and changes single objects. How they merge with the lower side, and which steps an
//! operation consists of, is decided in `fs`. The only state in memory is the descriptor cache and the next free inode
//! number: the directory on disk is authoritative.
//!
//! # On disk
//!
//! The upper directory has the kernel's own format ([`crate::whiteout`]), so the kernel can mount it, and plyfs can
//! mount the kernel's. What that format cannot express is in extended attributes that the kernel ignores and hides: an
//! object's inode number (`overlay.plyfs.id`), and on the root the image's ChainID and the first inode number that was
//! never used.
//!
//! An upper directory on lower directories is shared with other tools ([`Below::Directories`]): their marks are read,
//! only copied-up objects carry an inode number, and the root has a fixed word in place of a ChainID.
//!
//! ```text
//! WORK/plyfs/tmp/       objects being created or removed; emptied at every mount
//! WORK/plyfs/links/<n>  a hard-linked file of the image during its copy-up: all its names are created before it is
//!                       changed. The next mount completes the copy-ups that a crash interrupted.
//! WORK/plyfs/volatile   the boot ID during a volatile mount
//! WORK/work/incompat/volatile   the kernel's mark of a volatile mount
//! ```
//!
//! # Crash consistency
//!
//! An operation creates what it needs in `tmp` and then changes the view by one system call, usually rename(2). So a
//! killed process leaves either the old state or the new one. After a power failure the backing file system decides
//! what was kept; journaling keeps the order of directory changes, so only a file's data can be missing, and data is
//! synced before anything depends on it.

mod form;
mod object;
mod open;
mod whiteouts;

pub use object::{Draft, Made, Place, timestamps};
pub use open::{Below, OpenError, Owners, Settings, User, View, most_descriptors, note_boot};

use crate::backing::{self, Backing, Handle, Handles, Object, Raw};
use crate::meta::Kind;
use crate::sys;
use crate::whiteout::{Dialect, Mark, Namespace, WhiteoutForm, check_name, first_of};
use parking_lot::Mutex;
use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The first inode number for inodes that the image does not have.
pub const FIRST_OWN: u64 = 1 << 40;
/// Added to the backing file system's inode number of objects that carry none: symbolic links of an unprivileged user,
/// which cannot, and on a shared directory everything that was not copied up.
const DERIVED: u64 = 1 << 62;
/// The end (exclusive) of the inode numbers that upper directories allocate.
const END_OWN: u64 = 1 << 48;

/// Whether an upper directory allocated the inode number.
pub fn is_own(number: u64) -> bool {
    (FIRST_OWN..END_OWN).contains(&number) || number >= DERIVED
}

/// Whether an inode number is derived from the backing file system's, which reuses it for other objects.
pub fn is_derived(number: u64) -> bool {
    number >= DERIVED
}

/// Derives the inode number of an object that carries none from the backing file system's. That may be another mount of
/// plyfs with derived numbers of its own: three can be stacked without two inodes sharing a number.
pub fn derived(raw_ino: u64) -> u64 {
    raw_ino.checked_add(DERIVED).unwrap_or(raw_ino)
}

/// The longest target of a symbolic link.
const PATH_MAX: u64 = 4096;
/// How many inode numbers are reserved by one write of the root's mark.
const RESERVED: u64 = 1 << 20;

/// An open and locked upper directory; or a read-only view of one, which works while a mount changes it.
pub struct Upper {
    backing: Box<dyn Backing>,
    root: Handle,
    /// The two subdirectories of the work directory; in a view, which creates nothing, both are the root.
    tmp: OwnedFd,
    links: OwnedFd,
    /// Kept open for their flock(2) locks.
    _locked: Vec<OwnedFd>,
    is_view: bool,
    dialect: Dialect,
    /// The form in which whiteouts are written.
    form: WhiteoutForm,
    /// The attribute for owner and mode that an unprivileged user cannot set natively.
    overrides: Option<&'static CStr>,
    /// The user and group that own new files natively.
    own: (u32, u32),
    umask: u32,
    volatile: bool,
    /// A write failed in a volatile mount: every later sync must fail.
    failed: AtomicBool,
    /// The image's ChainID, while the directory is not bound to it yet.
    unclaimed: Option<String>,
    numbers: Mutex<Numbers>,
    serial: AtomicU64,
    /// The last whiteout that was created as a new inode.
    whiteout: Mutex<Option<Handle>>,
    handles: Handles,
}

struct Numbers {
    next: u64,
    limit: u64,
}

impl Upper {
    /// Returns the root's descriptor.
    pub fn root(&self) -> Handle {
        self.root.clone()
    }

    /// Whether the directory was empty and without marks: its own attributes mean nothing yet.
    pub fn is_fresh(&self) -> bool {
        self.unclaimed.is_some()
    }

    /// Whether this is a read-only view.
    pub fn is_view(&self) -> bool {
        self.is_view
    }

    /// Binds a fresh directory to the image, after its root has been given the image's attributes.
    pub fn claim(&self) -> io::Result<()> {
        match &self.unclaimed {
            Some(image) => self.set_mark(self.root.as_fd(), Mark::Image, image.as_bytes()),
            None => Ok(()),
        }
    }

    /// Whether owner, mode and kind may differ from those on the backing file system.
    pub fn overrides(&self) -> bool {
        self.overrides.is_some()
    }

    /// Returns how attributes are stored.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Returns the backing system calls, for callers that need no rule of this module.
    pub fn backing(&self) -> &dyn Backing {
        &*self.backing
    }

    /// Returns the cache of open descriptors.
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    /// Allocates an inode number that this upper directory never used; `None` on a shared directory, where numbers are
    /// derived from the backing file system's.
    pub fn new_number(&self) -> io::Result<Option<u64>> {
        if self.dialect.shared {
            return Ok(None);
        }
        let mut numbers = self.numbers.lock();
        if numbers.next == numbers.limit {
            let limit = numbers.limit + RESERVED;
            self.set_mark(self.root.as_fd(), Mark::Next, limit.to_string().as_bytes())?;
            // A reserved number must not be reused after a power failure.
            self.sync(self.root.as_fd(), false)?;
            numbers.limit = limit;
        }
        numbers.next += 1;
        Ok(Some(numbers.next - 1))
    }

    /// Reads a mark of an open object.
    pub fn mark(&self, fd: BorrowedFd, mark: Mark) -> io::Result<Option<Vec<u8>>> {
        self.read_mark(mark, |name| self.backing.get_xattr(fd, name.to_bytes()))
    }

    /// Reads a mark of a directory's entry.
    pub fn mark_at(&self, dir: BorrowedFd, name: &[u8], mark: Mark) -> io::Result<Option<Vec<u8>>> {
        self.read_mark(mark, |mark| self.backing.get_xattr_at(dir, name, mark))
    }

    fn read_mark(
        &self,
        mark: Mark,
        read: impl Fn(&CStr) -> io::Result<Option<Vec<u8>>>,
    ) -> io::Result<Option<Vec<u8>>> {
        // If several names of the mark exist, this dialect's own one counts.
        let own = self.name_of(mark);
        let others = self.dialect.read(mark).iter().copied().filter(|name| *name != own);
        Ok(first_of(iter::once(own).chain(others), read)?.map(|(_, value)| value))
    }

    fn name_of(&self, mark: Mark) -> &'static CStr {
        match (mark, self.overrides) {
            (Mark::Override, Some(name)) => name,
            _ => self.dialect.mark(mark),
        }
    }

    /// Whether other tools could take the name for a mark, so that an object under it must carry an inode number.
    pub fn is_ambiguous(&self, name: &[u8]) -> bool {
        self.dialect.shared && check_name(name).is_err()
    }

    /// Writes a mark.
    pub fn set_mark(&self, fd: BorrowedFd, mark: Mark, value: &[u8]) -> io::Result<()> {
        self.backing.set_xattr(fd, self.name_of(mark).to_bytes(), value, XattrFlags::empty())
    }

    /// Removes ACLs that an object inherited from the directory it was created in, which is not part of the union.
    pub fn clear_acls(&self, fd: BorrowedFd) -> io::Result<()> {
        open::clear_acls(self.backing(), fd)
    }

    /// Removes a mark; a missing one is not an error.
    pub fn clear_mark(&self, fd: BorrowedFd, mark: Mark) -> io::Result<()> {
        for name in self.dialect.read(mark) {
            match self.backing.remove_xattr(fd, name.to_bytes()) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NODATA) => {}
                // A mark of a class that this user may not write, and so does not see either.
                Err(e) if *name != self.dialect.mark(mark) && Errno::from_io_error(&e) == Some(Errno::PERM) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Returns the inode number that an entry carries, if any. A derived number is ignored and derived again: the
    /// object may have been copied.
    pub fn number_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Option<u64>> {
        let value = self.backing.get_xattr_at(dir, name, self.dialect.mark(Mark::Id))?;
        let number = value.and_then(|value| str::from_utf8(&value).ok()?.parse().ok());
        Ok(number.filter(|number| *number < DERIVED))
    }

    /// Writes an inode number to an object; in a view, assigns it for the life of the view. Where an object cannot
    /// carry one or needs none, returns the derived number.
    pub fn give_number(&self, fd: BorrowedFd, raw_ino: u64, number: Option<u64>) -> io::Result<u64> {
        let Some(number) = number else { return Ok(derived(raw_ino)) };
        if self.is_view {
            return Ok(number);
        }
        match self.set_mark(fd, Mark::Id, number.to_string().as_bytes()) {
            Ok(()) => Ok(number),
            Err(e)
                if self.has_user_marks()
                    && matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::OPNOTSUPP)) =>
            {
                Ok(derived(raw_ino))
            }
            Err(e) => Err(e),
        }
    }

    /// Marks an object as created by plyfs before it gets a name that other tools take for a mark. Objects that cannot
    /// carry an attribute are of kinds that they do not take for one. EINVAL where nothing can carry one, as
    /// fuse-overlayfs answers.
    pub fn claim_name(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<()> {
        if !self.is_ambiguous(name) {
            return Ok(());
        }
        if !self.has_marks() {
            return Err(Errno::INVAL.into());
        }
        if self.mark(fd, Mark::Id)?.is_some() {
            return Ok(());
        }
        let raw_ino = self.backing.stat(fd)?.ino;
        self.give_number(fd, raw_ino, Some(derived(raw_ino))).map(drop)
    }

    /// Whether marks are `user.` attributes, which only files and directories can carry.
    fn has_user_marks(&self) -> bool {
        self.dialect.namespace == Namespace::User
    }

    /// Returns the attributes of an open object.
    pub fn object(&self, fd: BorrowedFd) -> io::Result<Object> {
        let raw = self.backing.stat(fd)?;
        self.see(raw, || self.mark(fd, Mark::Override))
    }

    /// The same without modification and change time ([`Backing::stat_without_times`]).
    pub fn object_without_times(&self, fd: BorrowedFd) -> io::Result<Object> {
        let raw = self.backing.stat_without_times(fd)?;
        self.see(raw, || self.mark(fd, Mark::Override))
    }

    /// Returns the attributes of a directory's entry.
    pub fn object_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Object> {
        let raw = self.backing.stat_at(dir, name)?;
        self.see(raw, || self.mark_at(dir, name, Mark::Override))
    }

    fn see(&self, raw: Raw, said: impl FnOnce() -> io::Result<Option<Vec<u8>>>) -> io::Result<Object> {
        let can_be = self.overrides.is_some() && matches!(Kind::of(raw.mode), Some(Kind::File | Kind::Dir));
        Object::seen(raw, if can_be { said()? } else { None })
    }

    /// Opens a directory's entry as its kind requires: a file read-write, a directory for listing, anything else with
    /// O_PATH. If a file can only be opened read-only, the error that prevents writing comes with it: the file is
    /// immutable, or is being executed (ETXTBSY). Such a descriptor must not be cached.
    pub fn open_entry(&self, dir: BorrowedFd, name: &[u8], raw_mode: u32) -> io::Result<(OwnedFd, Option<io::Error>)> {
        let open = |flags| self.backing.open(dir, name, flags, 0);
        match Kind::of(raw_mode) {
            Some(Kind::Dir) => Ok((open(OFlags::RDONLY | OFlags::DIRECTORY)?, None)),
            Some(Kind::File) => match open(OFlags::RDWR) {
                Err(e) if is_refusal(&e) => Ok((open(OFlags::RDONLY)?, Some(e).filter(|_| !self.is_view))),
                opened => Ok((opened?, None)),
            },
            _ => Ok((open(OFlags::PATH)?, None)),
        }
    }

    /// Renames within the upper directory.
    pub fn rename(&self, from: Place, to: Place, flags: RenameFlags) -> io::Result<()> {
        self.backing.rename(from.dir, from.name, to.dir, to.name, flags)
    }

    /// Syncs an open object, unless the mount is volatile.
    pub fn sync(&self, fd: BorrowedFd, data_only: bool) -> io::Result<()> {
        if !self.volatile {
            return self.backing.sync(fd, data_only);
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    /// Starts write-back of a part of a file that will be synced, so that the disk writes while more is copied.
    pub fn begin_sync(&self, fd: BorrowedFd, offset: u64, len: u64) {
        if !self.volatile {
            // An error here recurs at the sync, and is reported then.
            let _begun = sys::begin_write_back(&fd, offset, len);
        }
    }

    /// Records that data did not reach the disk ([`Upper::sync`]).
    pub fn note_failure(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Sets owner and mode, those that are `Some`. What an unprivileged user may not set is stored in the attribute.
    /// The mode is set last, because chown(2) clears set-id bits.
    pub fn set_owner_and_mode(
        &self,
        fd: BorrowedFd,
        object: &Object,
        owner: (Option<u32>, Option<u32>),
        mode: Option<u32>,
    ) -> io::Result<()> {
        if self.overrides.is_some() && object.kind == Kind::Symlink && !object.overridden {
            // A symbolic link can carry no `user.` attribute, and has no mode. Root of a user namespace may chown it
            // within the namespace.
            return self.backing.chown(fd, owner.0, owner.1);
        }
        if self.overrides.is_some() {
            let (uid, gid) = (owner.0.unwrap_or(object.uid), owner.1.unwrap_or(object.gid));
            let mode = mode.unwrap_or(object.mode);
            if !object.overridden && self.is_native(object.kind, mode, uid, gid) {
                return self.backing.chmod(fd, mode);
            }
            let value = backing::print(object.kind, mode, uid, gid, object.rdev);
            return self.set_mark(fd, Mark::Override, value.as_bytes());
        }
        if owner != (None, None) {
            self.backing.chown(fd, owner.0, owner.1)?;
        }
        let Some(mode) = mode else { return Ok(()) };
        self.backing.chmod(fd, mode).inspect_err(|_| {
            if owner != (None, None) {
                let _as_good_as_it_gets = self
                    .backing
                    .chown(fd, Some(object.uid), Some(object.gid))
                    .and_then(|()| self.backing.chmod(fd, object.mode));
            }
        })
    }

    /// Whether owner and mode can be stored natively, so that the user can still read and write the object.
    fn is_native(&self, kind: Kind, mode: u32, uid: u32, gid: u32) -> bool {
        let needed = match kind {
            Kind::Dir => 0o700,
            Kind::File => 0o600,
            Kind::Symlink => 0,
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => return false,
        };
        (uid, gid) == self.own && mode & needed == needed && mode & 0o7000 == 0
    }

    /// Returns the target of a symbolic link, in either form.
    pub fn readlink(&self, link: BorrowedFd, object: &Object) -> io::Result<Vec<u8>> {
        if !object.overridden {
            return self.backing.readlink(link, b"");
        }
        self.backing.read_most(link, 0, object.raw.size.min(PATH_MAX) as usize)
    }

    fn serial(&self) -> String {
        self.serial.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY))
}

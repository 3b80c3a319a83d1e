//! The writable layer: a directory in the form of kernel overlayfs's upper directory, and the work directory beside it.
//!
//! This module makes, finds and changes single objects. What the union of them with an image looks like, and which steps
//! make an operation, is `fs`'s part. Nothing here is remembered but descriptors and the next free inode number: the
//! directory is the truth.
//!
//! # On disk
//!
//! The upper directory has the kernel's own form ([`crate::whiteout`]), so the kernel can mount it and the reverse. What
//! the kernel has no form for lies in extended attributes that it ignores and hides: an object's inode number
//! (`overlay.plyfs.id`), and on the root the image's ChainID and the first inode number that was never given away.
//!
//! One that lies on plain directories is shared with other tools ([`Below::Directories`]): all their marks are read, only
//! what was copied up carries a number, and in the ChainID's place stands a word that no image has.
//!
//! ```text
//! WORK/plyfs/tmp/       objects being made, and removed ones on their way out; wiped at every mount
//! WORK/plyfs/links/<n>  a file of the image with several names that is being copied up: all its names are made before it
//!                       is changed. What a crash leaves here is finished at the next mount.
//! WORK/plyfs/volatile   in which run of the machine that mount was
//! WORK/work/incompat/volatile   the kernel's mark of a mount that never synced
//! ```
//!
//! # Crashes
//!
//! An operation makes what it needs in `tmp` and then changes the view by one system call, a rename mostly. So a process
//! that is killed leaves the old state or the new one. After a power cut the file system below decides what was kept; it
//! keeps the order of changes to directories, as journals do, so only a file's data can be missing, and data is synced
//! before anything depends on it.

mod form;
mod object;
mod open;
mod whiteouts;

pub use object::{Draft, Made, Place, timestamps};
pub use open::{Below, OpenError, Owners, Settings, User, View, most_descriptors};

use crate::backing::{self, Backing, Handle, Handles, Object, Raw};
use crate::meta::Kind;
use crate::sys;
use crate::whiteout::{Dialect, Mark, Namespace, WhiteoutForm, check_name, first_of};
use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The first inode number of what the image does not have.
pub const FIRST_OWN: u64 = 1 << 40;
/// Added to the file system's own number where an object carries none: a plain user's symbolic links cannot, and where
/// other tools make objects too, only what was copied up does.
const DERIVED: u64 = 1 << 62;
/// Where the numbers end that upper directories give away.
const END_OWN: u64 = 1 << 48;

/// Whether an inode number is one that an upper directory gave away.
pub fn is_own(number: u64) -> bool {
    (FIRST_OWN..END_OWN).contains(&number) || number >= DERIVED
}

/// Whether an inode number follows from that of the file system below, which gives it to other objects later.
pub fn is_derived(number: u64) -> bool {
    number >= DERIVED
}

/// The number of an object that carries none, by that of the file system below. That may be another mount of plyfs, whose
/// numbers are derived themselves: three of them can lie on one another without two inodes getting one number.
pub fn derived(raw_ino: u64) -> u64 {
    raw_ino.checked_add(DERIVED).unwrap_or(raw_ino)
}

/// The longest target of a symbolic link.
const PATH_MAX: u64 = 4096;
/// How many numbers are reserved at once: the root's mark is written once for so many.
const RESERVED: u64 = 1 << 20;

/// An upper directory, open and locked; or a view of one, which changes nothing and gets along with whoever changes it.
pub struct Upper {
    backing: Box<dyn Backing>,
    root: Handle,
    /// The two folders of the work directory; a view, where nothing is made, has the root in their place.
    tmp: OwnedFd,
    links: OwnedFd,
    /// Held for their flocks.
    _locked: Vec<OwnedFd>,
    is_view: bool,
    dialect: Dialect,
    /// How whiteouts are written.
    form: WhiteoutForm,
    /// The attribute in which owner and mode are kept if they may have to be: for a plain user.
    overrides: Option<&'static CStr>,
    /// Who makes objects here, natively.
    own: (u32, u32),
    umask: u32,
    volatile: bool,
    /// A write failed in a volatile mount: from then on a sync must not say that all is well.
    failed: AtomicBool,
    /// The image's ChainID, while the directory is not bound to it yet.
    unclaimed: Option<String>,
    numbers: Mutex<Numbers>,
    serial: AtomicU64,
    /// The last whiteout that was made as a new inode.
    whiteout: Mutex<Option<Handle>>,
    handles: Handles,
}

struct Numbers {
    next: u64,
    limit: u64,
}

impl Upper {
    /// The root's descriptor.
    pub fn root(&self) -> Handle {
        self.root.clone()
    }

    /// Whether the directory was empty and without marks: its own attributes mean nothing yet.
    pub fn is_fresh(&self) -> bool {
        self.unclaimed.is_some()
    }

    /// Whether nothing can be changed by this: a view.
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

    /// Whether owner, mode and kind may be other than the file system below has them.
    pub fn overrides(&self) -> bool {
        self.overrides.is_some()
    }

    /// How attributes are kept.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The calls, for what needs no rule.
    pub fn backing(&self) -> &dyn Backing {
        &*self.backing
    }

    /// The descriptors kept open.
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    /// A number that no inode of this upper directory ever had; `None` where other tools make objects too, whose numbers
    /// follow from those of the file system below.
    pub fn new_number(&self) -> io::Result<Option<u64>> {
        if self.dialect.shared {
            return Ok(None);
        }
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if numbers.next == numbers.limit {
            let limit = numbers.limit + RESERVED;
            self.set_mark(self.root.as_fd(), Mark::Next, limit.to_string().as_bytes())?;
            // A number that was given away must not be given again after a power cut.
            self.sync(self.root.as_fd(), false)?;
            numbers.limit = limit;
        }
        numbers.next += 1;
        Ok(Some(numbers.next - 1))
    }

    /// Reads a mark.
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
        // The own one decides where there are several.
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

    /// Whether a name could be taken for a mark of other tools, so that what is made under it must carry a number.
    pub fn is_ambiguous(&self, name: &[u8]) -> bool {
        self.dialect.shared && check_name(name).is_err()
    }

    /// Writes a mark.
    pub fn set_mark(&self, fd: BorrowedFd, mark: Mark, value: &[u8]) -> io::Result<()> {
        self.backing.set_xattr(fd, self.name_of(mark).to_bytes(), value, XattrFlags::empty())
    }

    /// Removes ACLs that an object has from the directory it was made in, which is none of the union's.
    pub fn clear_acls(&self, fd: BorrowedFd) -> io::Result<()> {
        open::clear_acls(self.backing(), fd)
    }

    /// Removes a mark; one that is not there is gone already.
    pub fn clear_mark(&self, fd: BorrowedFd, mark: Mark) -> io::Result<()> {
        for name in self.dialect.read(mark) {
            match self.backing.remove_xattr(fd, name.to_bytes()) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NODATA) => {}
                // Of a class that this user may not touch, and so does not see either.
                Err(e) if *name != self.dialect.mark(mark) && Errno::from_io_error(&e) == Some(Errno::PERM) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// The number that an entry carries, if it does. One that followed from the file system's is made out anew: the object
    /// may have been copied.
    pub fn number_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Option<u64>> {
        let value = self.backing.get_xattr_at(dir, name, self.dialect.mark(Mark::Id))?;
        let number = value.and_then(|value| str::from_utf8(&value).ok()?.parse().ok());
        Ok(number.filter(|number| *number < DERIVED))
    }

    /// Gives an object its number for ever, or in a view for as long as that lives; where it can carry none or needs
    /// none, the number that follows from the file system's.
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

    /// Makes an object known as one of this mount's that is about to get a name which other tools take for a mark. What
    /// cannot carry an attribute is of a kind that they do not take for one.
    /// EINVAL where nothing can carry one, as fuse-overlayfs answers.
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

    /// Whether marks are attributes that only files and directories can carry.
    fn has_user_marks(&self) -> bool {
        self.dialect.namespace == Namespace::User
    }

    /// What a descriptor stands for.
    pub fn object(&self, fd: BorrowedFd) -> io::Result<Object> {
        let raw = self.backing.stat(fd)?;
        self.see(raw, || self.mark(fd, Mark::Override))
    }

    /// The same without the times of modification and change ([`Backing::stat_without_times`]).
    pub fn object_without_times(&self, fd: BorrowedFd) -> io::Result<Object> {
        let raw = self.backing.stat_without_times(fd)?;
        self.see(raw, || self.mark(fd, Mark::Override))
    }

    /// What a directory's entry is.
    pub fn object_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Object> {
        let raw = self.backing.stat_at(dir, name)?;
        self.see(raw, || self.mark_at(dir, name, Mark::Override))
    }

    fn see(&self, raw: Raw, said: impl FnOnce() -> io::Result<Option<Vec<u8>>>) -> io::Result<Object> {
        let can_be = self.overrides.is_some() && matches!(Kind::of(raw.mode), Some(Kind::File | Kind::Dir));
        Object::seen(raw, if can_be { said()? } else { None })
    }

    /// Opens a directory's entry as its kind needs it: a file for reading and writing, a directory for its entries,
    /// anything else by its path only. With a file that can only be read comes the reason: somebody made it immutable, or
    /// runs it. It must be opened again for the next use.
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

    /// Renames inside of the upper directory.
    pub fn rename(&self, from: Place, to: Place, flags: RenameFlags) -> io::Result<()> {
        self.backing.rename(from.dir, from.name, to.dir, to.name, flags)
    }

    /// Makes what a descriptor stands for lasting, as far as this mount does that at all.
    pub fn sync(&self, fd: BorrowedFd, data_only: bool) -> io::Result<()> {
        if !self.volatile {
            return self.backing.sync(fd, data_only);
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    /// Has the disk begin with a part of a file that is going to be synced: it writes while more is copied.
    pub fn begin_sync(&self, fd: BorrowedFd, offset: u64, len: u64) {
        if !self.volatile {
            // What fails here fails again when it is synced, and is told then.
            let _begun = sys::begin_write_back(&fd, offset, len);
        }
    }

    /// Remembers that data did not reach the disk ([`Upper::sync`]).
    pub fn note_failure(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Sets owner and mode, those that are given. What a plain user may not set is kept in the attribute. A mode that is
    /// set alone or with an owner is set last, because changing an owner takes set-id bits away.
    pub fn set_owner_and_mode(
        &self,
        fd: BorrowedFd,
        object: &Object,
        owner: (Option<u32>, Option<u32>),
        mode: Option<u32>,
    ) -> io::Result<()> {
        if self.overrides.is_some() && object.kind == Kind::Symlink && !object.overridden {
            // It can carry no attribute, and has no mode. Root of a user namespace may give it to others there.
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

    /// Whether owner and mode can be kept as they are, in a form that the user can still read and write himself.
    fn is_native(&self, kind: Kind, mode: u32, uid: u32, gid: u32) -> bool {
        let needed = match kind {
            Kind::Dir => 0o700,
            Kind::File => 0o600,
            Kind::Symlink => 0,
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => return false,
        };
        (uid, gid) == self.own && mode & needed == needed && mode & 0o7000 == 0
    }

    /// The target of a symbolic link, whichever form it has.
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

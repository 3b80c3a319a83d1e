//! The union of plyfs as a file system for runs without a kernel.

use super::image::{image, layers};
use super::inodes::{Change, Inodes, Listed, New};
use super::op::{Replace, Stamp};
use std::rc::Rc;

use crate::support::bed::{UnionFixture, disk};
use crate::support::faulty::{LimitedBacking, RefusedCalls};
use crate::support::tree::Record;
use plyfs::fs::{self, Attr, Fs, FsError, SetTime};
use plyfs::meta::{Kind, Time, device};
use plyfs::upper::User;

/// The image of the model with an upper directory in a temporary one.
pub struct Union {
    /// Opens the union; called again at each reopen.
    open: Box<dyn Fn() -> Fs>,
    fs: Option<Fs>,
}

impl Union {
    /// A new union without changes.
    pub fn new(user: User) -> Union {
        Union::with_fixture(&Rc::new(Union::fixture(user)))
    }

    /// The image, and a place for an upper directory.
    pub fn fixture(user: User) -> UnionFixture {
        let mut fixture = UnionFixture::new(layers(&image()));
        fixture.user = user;
        fixture
    }

    /// A union with this fixture.
    pub fn with_fixture(fixture: &Rc<UnionFixture>) -> Union {
        let fixture = fixture.clone();
        Union::with_open(move || fixture.open(disk))
    }

    /// A union with its upper directory on a file system that refuses some calls.
    pub fn with_refused(user: User, refused: RefusedCalls) -> Union {
        let fixture = Union::fixture(user);
        Union::with_open(move || fixture.open(|| Box::new(LimitedBacking(refused))))
    }

    /// A union that `open` opens.
    pub fn with_open(open: impl Fn() -> Fs + 'static) -> Union {
        let fs = Some(open());
        Union { open: Box::new(open), fs }
    }

    /// The open file system.
    pub fn fs(&self) -> &Fs {
        self.fs.as_ref().unwrap()
    }

    /// An answer that names an inode: the caller has a reference to it.
    fn take_reference(&self, answer: Result<Attr, FsError>) -> Result<Record, i32> {
        let attr = answer.map_err(errno)?;
        self.fs().remember(attr.ino);
        Ok(record(&attr))
    }
}

fn errno(error: FsError) -> i32 {
    error.errno()
}

fn record(attr: &Attr) -> Record {
    Record {
        mode: attr.kind.bits() | u32::from(attr.mode),
        uid: attr.uid,
        gid: attr.gid,
        size: if attr.kind == Kind::Dir { 0 } else { attr.size },
        rdev: ((attr.rdev >> 8) & 0xfff, (attr.rdev & 0xff) | ((attr.rdev >> 12) & !0xff)),
        mtime: (attr.mtime.sec, attr.mtime.nsec),
        nlink: attr.nlink.into(),
        ino: attr.ino,
        target: None,
        xattrs: Default::default(),
        hash: None,
    }
}

fn time(stamp: Option<Stamp>) -> Option<SetTime> {
    match stamp? {
        Stamp::Time(sec, nsec) => Some(SetTime::To(Time { sec, nsec })),
        Stamp::Now => Some(SetTime::Now),
        Stamp::Omit => None,
    }
}

impl Inodes for Union {
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Record, i32> {
        self.take_reference(self.fs().lookup(parent, name))
    }

    fn forget(&self, ino: u64, count: u64) {
        let _running = self.fs().begin();
        self.fs().forget(ino, count);
    }

    fn getattr(&self, ino: u64) -> Result<Record, i32> {
        self.fs().getattr(ino).map(|attr| record(&attr)).map_err(errno)
    }

    fn setattr(&self, ino: u64, change: &Change) -> Result<Record, i32> {
        let change = fs::Change {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: time(change.atime),
            mtime: time(change.mtime),
            ctime: None,
        };
        self.fs().setattr(ino, &change).map(|attr| record(&attr)).map_err(errno)
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>, i32> {
        self.fs().readlink(ino).map(|target| target.into_owned()).map_err(errno)
    }

    fn make(&self, parent: u64, name: &[u8], new: &New) -> Result<Record, i32> {
        let made = fs::New {
            kind: Kind::of(new.mode).unwrap(),
            mode: new.mode & 0o7777,
            umask: new.umask,
            rdev: device(new.rdev.0, new.rdev.1).unwrap(),
            uid: 0,
            gid: 0,
            target: new.target.as_deref().unwrap_or_default(),
        };
        self.take_reference(self.fs().make(parent, name, &made))
    }

    fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Record, i32> {
        self.take_reference(self.fs().link(ino, parent, name))
    }

    fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), i32> {
        self.fs().unlink(parent, name).map_err(errno)
    }

    fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), i32> {
        self.fs().rmdir(parent, name).map_err(errno)
    }

    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), how: Replace) -> Result<(), i32> {
        let replace = match how {
            Replace::Allow => fs::Replace::Allow,
            Replace::Forbid => fs::Replace::Forbid,
            Replace::Exchange => fs::Replace::Exchange,
        };
        self.fs().rename(from.0, from.1, to.0, to.1, replace).map(drop).map_err(errno)
    }

    fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.fs().read(ino, offset, len as u32).map(|bytes| bytes.into_owned()).map_err(errno)
    }

    fn write(&self, ino: u64, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        self.fs().write(ino, offset, bytes).map_err(errno)
    }

    fn fallocate(&self, ino: u64, mode: i32, offset: u64, len: u64) -> Result<(), i32> {
        self.fs().fallocate(ino, mode, offset, len).map_err(errno)
    }

    fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64, i32> {
        self.fs().copy_range(from.0, from.1, to.0, to.1, len).map_err(errno)
    }

    fn seek(&self, ino: u64, offset: u64, hole: bool) -> Result<u64, i32> {
        self.fs().seek(ino, offset, hole).map_err(errno)
    }

    fn fsync(&self, ino: u64, data_only: bool) -> Result<(), i32> {
        self.fs().fsync(ino, data_only).map_err(errno)
    }

    fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, i32> {
        self.fs().getxattr(ino, name).map(|value| value.into_owned()).map_err(errno)
    }

    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<(), i32> {
        self.fs().setxattr(ino, name, value, flags).map_err(errno)
    }

    fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>, i32> {
        let listed = self.fs().listxattr(ino, true).map_err(errno)?;
        Ok(listed.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), i32> {
        self.fs().removexattr(ino, name).map_err(errno)
    }

    fn readdir(&self, ino: u64, from: u64) -> Result<Vec<Listed>, i32> {
        let mut listed = Vec::new();
        let take = |entry: &fs::DirEntry| {
            if listed.len() == 3 {
                return true;
            }
            let (name, kind) = (entry.name.to_vec(), entry.kind.bits());
            listed.push(Listed { name, ino: entry.ino, kind, next: entry.next });
            false
        };
        self.fs().readdir(ino, from.max(2), take).map_err(errno)?;
        Ok(listed)
    }

    /// A killed process and one that ends leave the same: what it knew is on disk already.
    fn reopen(&mut self, _killed: bool) {
        self.fs = None;
        self.fs = Some((self.open)());
    }
}

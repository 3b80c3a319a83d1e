//! An in-memory file system with the model's inodes: it checks the kernel's part in [`super::by_inode`].

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::image::Initial;
use super::inodes::{Change, Inodes, Listed, New};
use super::op::{Replace, Special, Stamp};
use super::state::{Body, Content, Id, Model, Mtime, Node};
use crate::support::tree::Record;

/// A tree in memory. Inodes are never freed, so references do not matter.
pub struct InMemory {
    model: RefCell<Model>,
    /// The stable listing offset of each name, whatever is added and removed.
    places: RefCell<BTreeMap<String, u64>>,
}

impl InMemory {
    pub fn new(image: &[Initial]) -> Self {
        Self { model: RefCell::new(Model::new(image)), places: RefCell::default() }
    }

    fn child(&self, dir: u64, name: &[u8]) -> Result<Id, i32> {
        let name = std::str::from_utf8(name).unwrap();
        if name.len() > 255 {
            return Err(libc::ENAMETOOLONG);
        }
        self.model.borrow().entries(dir).get(name).copied().ok_or(libc::ENOENT)
    }

    fn remove(&self, dir: u64, name: &[u8]) -> Result<Id, i32> {
        self.child(dir, name)?;
        let mut model = self.model.borrow_mut();
        model.changed(dir);
        Ok(model.remove_name(dir, std::str::from_utf8(name).unwrap()))
    }

    fn add_name(&self, dir: u64, name: &[u8], id: Id) {
        let mut model = self.model.borrow_mut();
        model.changed(dir);
        model.add_name(dir, String::from_utf8(name.to_vec()).unwrap(), id);
    }

    /// Changes a file's bytes.
    fn edit(&self, ino: u64, edit: impl FnOnce(&mut Content)) -> Result<(), i32> {
        let mut model = self.model.borrow_mut();
        let Body::File(content) = &mut model.node_mut(ino).body else { return Err(libc::EINVAL) };
        edit(content);
        model.node_mut(ino).mtime = Mtime::Recent;
        Ok(())
    }

    fn is_full(&self, dir: Id) -> bool {
        let model = self.model.borrow();
        model.node(dir).is_dir() && !model.entries(dir).is_empty()
    }
}

impl Inodes for InMemory {
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Record, i32> {
        self.getattr(self.child(parent, name)?)
    }

    fn forget(&self, _: u64, _: u64) {}

    fn getattr(&self, ino: u64) -> Result<Record, i32> {
        let model = self.model.borrow();
        let record = model.record(ino);
        let mtime = match model.node(ino).mtime {
            Mtime::Exactly(seconds, nanos) => (seconds, nanos),
            Mtime::Recent | Mtime::Any => (i64::MAX, 0),
        };
        Ok(Record { mtime, xattrs: Default::default(), target: None, hash: None, ..record })
    }

    fn setattr(&self, ino: u64, change: &Change) -> Result<Record, i32> {
        if let Some(size) = change.size {
            self.edit(ino, |content| content.edit().resize(size as usize, 0))?;
        }
        assert_ne!(change.atime, Some(Stamp::Omit));
        let mut model = self.model.borrow_mut();
        let node = model.node_mut(ino);
        node.mode = change.mode.unwrap_or(node.mode);
        node.uid = change.uid.unwrap_or(node.uid);
        node.gid = change.gid.unwrap_or(node.gid);
        match change.mtime {
            Some(Stamp::Time(seconds, nanos)) => node.mtime = Mtime::Exactly(seconds, nanos),
            Some(_) => node.mtime = Mtime::Recent,
            None => {}
        }
        drop(model);
        self.getattr(ino)
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>, i32> {
        match &self.model.borrow().node(ino).body {
            Body::Symlink(target) => Ok(target.clone().into_bytes()),
            _ => Err(libc::EINVAL),
        }
    }

    fn make(&self, parent: u64, name: &[u8], new: &New) -> Result<Record, i32> {
        let body = match new.mode & libc::S_IFMT {
            libc::S_IFREG => Body::File(Content::default()),
            libc::S_IFDIR => Body::empty_dir(parent),
            libc::S_IFLNK => Body::Symlink(String::from_utf8(new.target.clone().unwrap()).unwrap()),
            libc::S_IFIFO => Body::Special(Special::Fifo, new.rdev),
            libc::S_IFCHR => Body::Special(Special::Char, new.rdev),
            libc::S_IFBLK => Body::Special(Special::Block, new.rdev),
            _ => Body::Special(Special::Socket, new.rdev),
        };
        assert!(new.target.is_some() || new.mode & new.umask == 0, "{new:?}");
        let mut model = self.model.borrow_mut();
        model.insert(parent, String::from_utf8(name.to_vec()).unwrap(), body, new.mode & 0o7777);
        drop(model);
        self.lookup(parent, name)
    }

    fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Record, i32> {
        self.add_name(parent, name, ino);
        self.getattr(ino)
    }

    fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), i32> {
        self.remove(parent, name).map(drop)
    }

    fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), i32> {
        if self.is_full(self.child(parent, name)?) {
            return Err(libc::ENOTEMPTY);
        }
        self.remove(parent, name).map(drop)
    }

    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), how: Replace) -> Result<(), i32> {
        let new = self.child(to.0, to.1).ok();
        if how != Replace::Exchange && new.is_some_and(|new| self.is_full(new)) {
            return Err(libc::ENOTEMPTY);
        }
        let old = self.remove(from.0, from.1)?;
        if let Some(new) = new {
            self.remove(to.0, to.1)?;
            if how == Replace::Exchange {
                self.add_name(from.0, from.1, new);
            }
        }
        self.add_name(to.0, to.1, old);
        Ok(())
    }

    fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let model = self.model.borrow();
        let bytes = model.content(ino).bytes();
        let end = bytes.len().min((offset as usize).saturating_add(len));
        Ok(bytes[bytes.len().min(offset as usize)..end].to_vec())
    }

    fn write(&self, ino: u64, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        self.edit(ino, |content| content.put(offset, bytes))
    }

    fn fallocate(&self, ino: u64, mode: i32, offset: u64, len: u64) -> Result<(), i32> {
        let (offset, end) = (offset as usize, (offset + len) as usize);
        let zero = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        self.edit(ino, |content| {
            let bytes = content.edit();
            if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
                bytes.resize(bytes.len().max(end), 0);
            }
            if zero {
                let size = bytes.len();
                bytes[offset.min(size)..end.min(size)].fill(0);
            }
        })
    }

    fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64, i32> {
        // Short at times, as real ones are.
        let bytes = self.read(from.0, from.1, (len as usize).min(10_000))?;
        self.write(to.0, to.1, &bytes).map(|()| bytes.len() as u64)
    }

    fn seek(&self, ino: u64, offset: u64, hole: bool) -> Result<u64, i32> {
        let size = self.model.borrow().content(ino).bytes().len() as u64;
        match offset < size {
            true => Ok(if hole { size } else { offset }),
            false => Err(libc::ENXIO),
        }
    }

    fn fsync(&self, _: u64, _: bool) -> Result<(), i32> {
        Ok(())
    }

    fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, i32> {
        self.model.borrow().node(ino).xattrs.get(name).cloned().ok_or(libc::ENODATA)
    }

    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<(), i32> {
        let mut model = self.model.borrow_mut();
        let Node { xattrs, .. } = model.node_mut(ino);
        match xattrs.contains_key(name) {
            true if flags == libc::XATTR_CREATE => return Err(libc::EEXIST),
            false if flags == libc::XATTR_REPLACE => return Err(libc::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>, i32> {
        Ok(self.model.borrow().node(ino).xattrs.keys().cloned().collect())
    }

    fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), i32> {
        self.model.borrow_mut().node_mut(ino).xattrs.remove(name).map(drop).ok_or(libc::ENODATA)
    }

    fn readdir(&self, ino: u64, from: u64) -> Result<Vec<Listed>, i32> {
        let model = self.model.borrow();
        let mut places = self.places.borrow_mut();
        let mut place = |name: &String| {
            let next = places.len() as u64 + 1;
            *places.entry(name.clone()).or_insert(next)
        };
        let mut all: Vec<_> = model
            .entries(ino)
            .iter()
            .map(|(name, id)| Listed {
                name: name.clone().into_bytes(),
                ino: *id,
                kind: model.node(*id).body.kind(),
                next: place(name),
            })
            .filter(|entry| entry.next > from)
            .collect();
        all.sort_by_key(|entry| entry.next);
        all.truncate(3);
        Ok(all)
    }

    fn reopen(&mut self, _: bool) {}
}

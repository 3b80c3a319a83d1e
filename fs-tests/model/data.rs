//! The model's steps on file contents and attributes, by path and through held descriptors and mappings.

use std::collections::BTreeSet;

use super::names::{DONE, Expected};
use super::op::{Alloc, At, CAPABILITY_NAME, Op, Outcome, Stamp, XattrFlag, pattern, xattr_value};
use super::state::{Body, Content, Held, Id, Listing, Model, Mtime, Step, StepError, refuse};

fn count(count: usize) -> Step<Expected> {
    Ok(Expected::Outcome(Outcome::Count(count as u64)))
}

fn bytes(bytes: &[u8]) -> Step<Expected> {
    Ok(Expected::Outcome(Outcome::Bytes(bytes.to_vec())))
}

impl Model {
    pub(super) fn apply_to_content(&mut self, op: &Op) -> Step<Expected> {
        match *op {
            Op::Open { at, write, truncate } => self.open(at, write, truncate),
            Op::Read { at, offset, len } => {
                let id = self.file(at)?;
                bytes(self.content(id).range(offset, len))
            }
            Op::Write { at, offset, len, fill } => {
                let id = self.file(at)?;
                self.write(id, offset, len, fill)
            }
            Op::Append { at, len, fill } => {
                let id = self.file(at)?;
                let end = self.content(id).bytes().len() as u64;
                self.write(id, end, len, fill)
            }
            Op::Truncate { at, size } => {
                let id = self.walk(at, true)?;
                match self.node(id).body {
                    Body::Dir { .. } => refuse(libc::EISDIR),
                    Body::File(_) => self.truncate(id, size),
                    _ => refuse(libc::EINVAL),
                }
            }
            Op::Allocate { at, how, offset, len } => self.allocate(at, how, offset as usize, len as usize),
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                self.copy_range(from, from_offset, to, to_offset, len as usize)
            }
            Op::Seek { at, offset, hole } => self.seek(at, offset, hole),
            Op::Fsync { at, .. } => self.opened(at).and(DONE),
            Op::Mapped { at, offset, len, fill, shared } => self.mapped(at, offset, len, fill, shared),
            Op::Stat { at, follow } => self.walk(at, follow).map(Expected::Stat),
            Op::ReadLink { at } => match &self.node(self.walk(at, false)?).body {
                Body::Symlink(target) => bytes(target.as_bytes()),
                _ => refuse(libc::EINVAL),
            },
            Op::List { at } => self.list(self.walk(at, true)?),
            Op::Chmod { .. } | Op::Chown { .. } | Op::Utimes { .. } => self.apply_to_attributes(op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::ListXattrs { .. } | Op::RemoveXattr { .. } => {
                self.apply_to_xattrs(op)
            }
            _ => self.apply_to_held(op),
        }
    }

    fn apply_to_held(&mut self, op: &Op) -> Step<Expected> {
        match *op {
            Op::HeldRead { slot, offset, len } => {
                let held = self.held_file(slot)?;
                bytes(self.content(held.id).range(offset, len))
            }
            Op::HeldWrite { slot, offset, len, fill } => match self.held_file(slot)? {
                held if !held.write => refuse(libc::EBADF),
                held => self.write(held.id, offset, len, fill),
            },
            Op::HeldTruncate { slot, size } => match self.held_file(slot)? {
                held if !held.write => refuse(libc::EINVAL),
                held => self.truncate(held.id, size),
            },
            Op::HeldStat { slot } => match self.held(slot)? {
                held if held.map => Err(StepError::Skip),
                held => Ok(Expected::Stat(held.id)),
            },
            Op::HeldSync { slot } => match self.held(slot)? {
                held if held.map => Err(StepError::Skip),
                _ => DONE,
            },
            Op::HeldList { slot } => match self.held(slot)? {
                held if held.map => Err(StepError::Skip),
                held => {
                    // It begins anew.
                    self.listings[slot] = None;
                    self.list(held.id)
                }
            },
            Op::HeldListBegin { slot } => match self.held(slot)? {
                held if held.map => Err(StepError::Skip),
                held => {
                    self.listings[slot] = None;
                    self.list(held.id)?;
                    self.listings[slot] = Some(Listing::default());
                    DONE
                }
            },
            Op::HeldListEnd { slot } => self.end_listing(slot),
            Op::HeldMapLoad { slot, offset, len } => {
                let held = self.held_map(slot)?;
                match self.content(held.id).range(offset, len) {
                    // Behind the end there is nothing but a signal.
                    [] => Err(StepError::Skip),
                    range if range.len() < len => Err(StepError::Skip),
                    range => bytes(range),
                }
            }
            Op::HeldMapStore { slot, offset, len, fill } => {
                let held = self.held_map(slot)?;
                if !held.write || self.content(held.id).range(offset, len).len() < len {
                    return Err(StepError::Skip);
                }
                self.store(held.id, offset, len, fill);
                DONE
            }
            _ => unreachable!("{op:?} is nobody's"),
        }
    }

    fn end_listing(&mut self, slot: usize) -> Step<Expected> {
        let held = self.held(slot)?;
        let Listing { touched } = self.listings[slot].take().ok_or(StepError::Skip)?;
        let Expected::Outcome(Outcome::Entries(mut sure)) = self.list(held.id)? else { return Err(StepError::Skip) };
        let maybe: BTreeSet<_> = touched.into_iter().map(String::into_bytes).collect();
        sure.retain(|(name, _)| !maybe.contains(name));
        Ok(Expected::Listing { sure, maybe })
    }

    fn held_file(&self, slot: usize) -> Step<Held> {
        let held = self.held(slot)?;
        let is_file = matches!(self.node(held.id).body, Body::File(_));
        if is_file && !held.map { Ok(held) } else { Err(StepError::Skip) }
    }

    fn held_map(&self, slot: usize) -> Step<Held> {
        self.held(slot).and_then(|held| if held.map { Ok(held) } else { Err(StepError::Skip) })
    }

    pub fn content(&self, id: Id) -> &Content {
        match &self.node(id).body {
            Body::File(content) => content,
            _ => panic!("inode {id} of the model is no file"),
        }
    }

    fn content_mut(&mut self, id: Id) -> &mut Content {
        match &mut self.node_mut(id).body {
            Body::File(content) => content,
            _ => panic!("inode {id} of the model is no file"),
        }
    }

    /// A file or directory that can be opened for reading.
    fn opened(&self, at: At) -> Step<Id> {
        let id = self.walk(at, true)?;
        if matches!(self.node(id).body, Body::Special(..)) { Err(StepError::Skip) } else { Ok(id) }
    }

    /// A regular file, to be read or written: a directory refuses both with the same words.
    fn file(&self, at: At) -> Step<Id> {
        let id = self.opened(at)?;
        if self.node(id).is_dir() { refuse(libc::EISDIR) } else { Ok(id) }
    }

    fn open(&mut self, at: At, write: bool, truncate: bool) -> Step<Expected> {
        let id = if write || truncate { self.file(at)? } else { self.opened(at)? };
        if truncate {
            self.content_mut(id).edit().clear();
            self.modified(id);
        }
        DONE
    }

    /// A file's content changed through system calls.
    fn modified(&mut self, id: Id) {
        let node = self.node_mut(id);
        node.mtime = Mtime::Recent;
        node.xattrs.remove(CAPABILITY_NAME.as_bytes());
    }

    fn write(&mut self, id: Id, offset: u64, len: usize, fill: u8) -> Step<Expected> {
        if len > 0 {
            self.content_mut(id).put(offset, &pattern(fill, offset, len));
            self.modified(id);
        }
        count(len)
    }

    /// Through a mapping, which says nothing of when the time changes.
    fn store(&mut self, id: Id, offset: u64, len: usize, fill: u8) {
        self.content_mut(id).put(offset, &pattern(fill, offset, len));
        self.node_mut(id).mtime = Mtime::Any;
    }

    fn truncate(&mut self, id: Id, size: u64) -> Step<Expected> {
        let before = self.content(id).bytes().len() as u64;
        self.content_mut(id).edit().resize(size as usize, 0);
        self.modified(id);
        if before == size {
            self.node_mut(id).mtime = Mtime::Any;
        }
        DONE
    }

    fn allocate(&mut self, at: At, how: Alloc, offset: usize, len: usize) -> Step<Expected> {
        let id = self.file(at)?;
        let size = self.content(id).bytes().len();
        self.modified(id);
        // ext4 has touched the file by the time it refuses.
        match how {
            Alloc::Collapse if offset + len >= size => return refuse(libc::EINVAL),
            Alloc::Insert if offset >= size => return refuse(libc::EINVAL),
            _ => {}
        }
        let end = offset + len;
        let bytes = self.content_mut(id).edit();
        let zero = |bytes: &mut Vec<u8>| {
            let (from, to) = (offset.min(bytes.len()), end.min(bytes.len()));
            bytes[from..to].fill(0);
        };
        match how {
            Alloc::Plain => bytes.resize(size.max(end), 0),
            Alloc::KeepSize => {}
            Alloc::PunchHole | Alloc::ZeroKeepSize => zero(bytes),
            Alloc::ZeroRange => {
                bytes.resize(size.max(end), 0);
                zero(bytes);
            }
            Alloc::Collapse => drop(bytes.drain(offset..end)),
            Alloc::Insert => drop(bytes.splice(offset..offset, std::iter::repeat_n(0, len))),
        }
        if matches!(how, Alloc::Plain | Alloc::KeepSize) {
            self.node_mut(id).mtime = Mtime::Any;
        }
        DONE
    }

    fn copy_range(&mut self, from: At, from_offset: u64, to: At, to_offset: u64, len: usize) -> Step<Expected> {
        let source = self.opened(from)?;
        let target = self.file(to)?;
        if self.node(source).is_dir() {
            return refuse(libc::EISDIR);
        }
        let copied = self.content(source).range(from_offset, len).to_vec();
        let length = copied.len() as u64;
        if source == target && to_offset + length > from_offset && to_offset < from_offset + length {
            return refuse(libc::EINVAL);
        }
        if !copied.is_empty() {
            self.content_mut(target).put(to_offset, &copied);
            self.modified(target);
        }
        count(copied.len())
    }

    fn seek(&mut self, at: At, offset: u64, hole: bool) -> Step<Expected> {
        let id = self.opened(at)?;
        if self.node(id).is_dir() {
            return Err(StepError::Skip);
        }
        let bytes = self.content(id).bytes().to_vec();
        if offset >= bytes.len() as u64 { refuse(libc::ENXIO) } else { Ok(Expected::Seek { bytes, offset, hole }) }
    }

    fn mapped(&mut self, at: At, offset: u64, len: usize, fill: u8, shared: bool) -> Step<Expected> {
        let id = self.file(at)?;
        if len == 0 || self.content(id).range(offset, len).len() < len {
            return Err(StepError::Skip);
        }
        if shared {
            self.store(id, offset, len, fill);
        }
        bytes(&pattern(fill, offset, len))
    }

    fn list(&self, id: Id) -> Step<Expected> {
        if !self.node(id).is_dir() {
            return refuse(libc::ENOTDIR);
        }
        if self.node(id).names == 0 {
            return refuse(libc::ENOENT);
        }
        let entry = |(name, id): (&String, &Id)| (name.clone().into_bytes(), self.node(*id).body.kind());
        Ok(Expected::Outcome(Outcome::Entries(self.entries(id).iter().map(entry).collect())))
    }

    fn apply_to_attributes(&mut self, op: &Op) -> Step<Expected> {
        match *op {
            Op::Chmod { at, mode } => {
                let id = self.walk(at, true)?;
                self.node_mut(id).mode = mode & 0o7777;
            }
            Op::Chown { at, uid, gid, follow } => {
                let id = self.walk(at, follow)?;
                let node = self.node_mut(id);
                node.uid = uid.unwrap_or(node.uid);
                node.gid = gid.unwrap_or(node.gid);
                if !node.is_dir() {
                    let executable = node.mode & 0o2010 == 0o2010;
                    node.mode &= if executable { !0o6000 } else { !0o4000 };
                    node.xattrs.remove(CAPABILITY_NAME.as_bytes());
                }
            }
            Op::Utimes { at, mtime, follow } => {
                let id = self.walk(at, follow)?;
                match mtime {
                    Stamp::Time(seconds, nanos) => self.node_mut(id).mtime = Mtime::Exactly(seconds, nanos),
                    Stamp::Now => self.node_mut(id).mtime = Mtime::Recent,
                    Stamp::Omit => {}
                }
            }
            _ => unreachable!("{op:?} is nobody's"),
        }
        DONE
    }

    /// The inode, if it may have such an attribute; else `otherwise`.
    fn xattr_inode(&self, at: At, name: &str, follow: bool, otherwise: i32) -> Step<Id> {
        let id = self.walk(at, follow)?;
        let is_supported = matches!(self.node(id).body, Body::File(_) | Body::Dir { .. });
        if name == CAPABILITY_NAME && !matches!(self.node(id).body, Body::File(_)) {
            return Err(StepError::Skip);
        }
        if name.starts_with("user.") && !is_supported { refuse(otherwise) } else { Ok(id) }
    }

    fn apply_to_xattrs(&mut self, op: &Op) -> Step<Expected> {
        match *op {
            Op::SetXattr { at, name, len, fill, flag, follow } => {
                let id = self.xattr_inode(at, name, follow, libc::EPERM)?;
                let xattrs = &mut self.node_mut(id).xattrs;
                match (flag, xattrs.contains_key(name.as_bytes())) {
                    (XattrFlag::MustCreate, true) => return refuse(libc::EEXIST),
                    (XattrFlag::MustReplace, false) => return refuse(libc::ENODATA),
                    _ => {}
                }
                xattrs.insert(name.as_bytes().to_vec(), xattr_value(name, fill, len));
                DONE
            }
            Op::GetXattr { at, name, room, follow } => {
                let id = self.xattr_inode(at, name, follow, libc::ENODATA)?;
                match self.node(id).xattrs.get(name.as_bytes()) {
                    None => refuse(libc::ENODATA),
                    Some(value) if room == 0 => count(value.len()),
                    Some(value) if room < value.len() => refuse(libc::ERANGE),
                    Some(value) => bytes(value),
                }
            }
            Op::ListXattrs { at, follow } => {
                let id = self.walk(at, follow)?;
                let names = self.node(id).xattrs.keys().cloned().collect();
                Ok(Expected::Outcome(Outcome::Names(names)))
            }
            Op::RemoveXattr { at, name, follow } => {
                let id = self.xattr_inode(at, name, follow, libc::EPERM)?;
                match self.node_mut(id).xattrs.remove(name.as_bytes()) {
                    Some(_) => DONE,
                    None => refuse(libc::ENODATA),
                }
            }
            _ => unreachable!("{op:?} is nobody's"),
        }
    }
}

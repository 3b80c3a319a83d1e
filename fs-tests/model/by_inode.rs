//! A harness without a kernel: it does the kernel's part for paths, descriptors and mappings itself, and calls
//! [`Inodes`] for the rest.
//!
//! It forgets inode references at the end of each step, where a kernel would keep them longer, except those of slots.

use std::cell::RefCell;

use super::check::Checks;
use super::harness::Harness;
use super::inodes::{Change, Inodes, Listed, New};
use super::op::{Alloc, At, CAPABILITY_NAME, Op, Outcome, Replace, SLOTS, Special, Stamp, XattrFlag};
use super::op::{expand, pattern, xattr_value};
use super::place::View;
use super::state::ROOT;
use crate::support::tree::{Record, Tree};
use sha2::{Digest, Sha256};

type OpResult<T = Outcome> = Result<T, i32>;
/// The entries of a listing so far, and the offset of the next one.
type Listing = (Vec<(Vec<u8>, u32)>, u64);

const DONE: OpResult = Ok(Outcome::Done);

struct Held {
    ino: u64,
    write: bool,
    listing: Listing,
}

/// A harness that works on inodes.
pub struct InodeHarness<I> {
    inodes: I,
    slots: [Option<Held>; SLOTS],
    /// References taken in this step.
    taken: RefCell<Vec<u64>>,
    umask: u32,
    checks: Checks,
}

/// A resolved path: the directories from the root to the last one, and the last name.
struct Location {
    dirs: Vec<u64>,
    name: Vec<u8>,
}

impl Location {
    fn dir(&self) -> u64 {
        self.dirs[self.dirs.len() - 1]
    }

    fn is_dots(&self) -> bool {
        self.name == b"." || self.name == b".."
    }
}

fn kind(record: &Record) -> u32 {
    record.mode & libc::S_IFMT
}

fn is_dir(record: &Record) -> bool {
    kind(record) == libc::S_IFDIR
}

fn none_if_absent<T>(found: OpResult<T>) -> OpResult<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(libc::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl<I: Inodes> Harness for InodeHarness<I> {
    fn apply(&mut self, op: &Op) -> OpResult {
        let result = self.apply_to_names(op);
        self.taken.take().into_iter().for_each(|ino| self.inodes.forget(ino, 1));
        result
    }

    fn tree(&mut self) -> Tree {
        let mut tree = Tree::default();
        let root = self.full_record(ROOT).expect("the root answers");
        tree.records.insert(b"/".to_vec(), root);
        self.scan(ROOT, &[], &mut tree);
        self.taken.take().into_iter().for_each(|ino| self.inodes.forget(ino, 1));
        tree
    }

    fn content(&mut self, path: &[u8]) -> Vec<u8> {
        let dirs = vec![ROOT];
        let found = self.follow(dirs, path, true, &mut 0).and_then(|dirs| self.all(dirs[dirs.len() - 1]));
        found.unwrap_or_default()
    }

    fn checks(&self) -> Checks {
        self.checks
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        (0..SLOTS).for_each(|slot| self.release(slot));
        Ok(Vec::new())
    }
}

impl<I: Inodes> InodeHarness<I> {
    pub fn new(inodes: I, umask: u32, checks: Checks) -> Self {
        Self { inodes, slots: [const { None }; SLOTS], taken: RefCell::default(), umask, checks }
    }

    /// The file system under test.
    pub fn inodes(&self) -> &I {
        &self.inodes
    }

    fn hold_reference(&self, record: Record) -> Record {
        self.taken.borrow_mut().push(record.ino);
        record
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> OpResult<Record> {
        self.inodes.lookup(dir, name).map(|record| self.hold_reference(record))
    }

    /// Resolves a path, starting from a chain of directories; the last element is the inode at the path.
    fn follow(&self, mut dirs: Vec<u64>, path: &[u8], last_too: bool, links: &mut u32) -> OpResult<Vec<u64>> {
        if path.starts_with(b"/nonexistent/") {
            return Err(libc::ENOENT);
        }
        let mut rest = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = rest.next() {
            let here = dirs[dirs.len() - 1];
            if !is_dir(&self.inodes.getattr(here)?) {
                return Err(libc::ENOTDIR);
            }
            match name {
                b"." => continue,
                b".." => drop(dirs.pop()),
                _ => {
                    let next = self.lookup(here, name)?;
                    if kind(&next) == libc::S_IFLNK && (last_too || rest.peek().is_some()) {
                        *links += 1;
                        if *links > 40 {
                            return Err(libc::ELOOP);
                        }
                        dirs = self.follow(dirs, &self.inodes.readlink(next.ino)?, true, links)?;
                    } else {
                        dirs.push(next.ino);
                    }
                }
            }
        }
        Ok(dirs)
    }

    fn walk(&self, at: At, follow: bool) -> OpResult<Record> {
        let dirs = self.follow(vec![ROOT], expand(at).as_bytes(), follow, &mut 0)?;
        self.inodes.getattr(dirs[dirs.len() - 1])
    }

    fn parent_from(&self, dirs: Vec<u64>, path: &[u8], links: &mut u32) -> OpResult<Location> {
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = cut.map_or((&b""[..], path), |cut| (&path[..cut], &path[cut + 1..]));
        // The way to `/nonexistent/x` ends above its last name.
        let above = if above == b"/nonexistent" { b"/nonexistent/" } else { above };
        let dirs = self.follow(dirs, above, true, links)?;
        let location = Location { dirs, name: name.to_vec() };
        if is_dir(&self.inodes.getattr(location.dir())?) { Ok(location) } else { Err(libc::ENOTDIR) }
    }

    fn parent(&self, at: At) -> OpResult<Location> {
        self.parent_from(vec![ROOT], expand(at).as_bytes(), &mut 0)
    }

    fn child(&self, location: &Location) -> OpResult<Option<Record>> {
        none_if_absent(self.lookup(location.dir(), &location.name))
    }

    fn vacant(&self, at: At) -> OpResult<Location> {
        let location = self.parent(at)?;
        if location.is_dots() || self.child(&location)?.is_some() { Err(libc::EEXIST) } else { Ok(location) }
    }

    fn make(&self, location: &Location, mode: u32, rdev: (u32, u32), target: Option<Vec<u8>>) -> OpResult {
        let masked = if target.is_some() { mode } else { mode & !self.umask };
        let new = New { mode: masked, umask: self.umask, rdev, target };
        self.hold_reference(self.inodes.make(location.dir(), &location.name, &new)?);
        DONE
    }

    fn apply_to_names(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::Create { at, mode, excl } => self.create(at, mode, excl),
            Op::Mkdir { at, mode } => self.make(&self.vacant(at)?, libc::S_IFDIR | mode & 0o1777, (0, 0), None),
            Op::Mknod { at, kind, mode, rdev } => {
                let bits = match kind {
                    Special::Regular => libc::S_IFREG,
                    Special::Fifo => libc::S_IFIFO,
                    Special::Char => libc::S_IFCHR,
                    Special::Block => libc::S_IFBLK,
                    Special::Socket => libc::S_IFSOCK,
                };
                self.make(&self.vacant(at)?, bits | mode & 0o7777, rdev, None)
            }
            Op::Symlink { at, target } => {
                self.make(&self.vacant(at)?, libc::S_IFLNK | 0o777, (0, 0), Some(expand(target).into_bytes()))
            }
            Op::Link { from, to, follow } => self.link(self.walk(from, follow)?.ino, to),
            Op::HeldLink { slot, to } => self.link(self.held(slot).ino, to),
            Op::Unlink { at } => self.unlink(&self.parent(at)?),
            Op::Rmdir { at } => self.rmdir(&self.parent(at)?),
            Op::RemoveAll { at } => self.remove_all(&self.parent(at)?),
            Op::Rename { from, to, how } => self.rename(&self.parent(from)?, &self.parent(to)?, how),
            Op::HeldMkdir { slot, name } => {
                let location = Location { dirs: vec![self.held(slot).ino], name: expand(name).into_bytes() };
                let dir = self.inodes.getattr(location.dir())?;
                if !is_dir(&dir) {
                    return Err(libc::ENOTDIR);
                }
                if dir.nlink == 0 {
                    return Err(libc::ENOENT);
                }
                if self.child(&location)?.is_some() {
                    return Err(libc::EEXIST);
                }
                self.make(&location, libc::S_IFDIR | 0o755, (0, 0), None)
            }
            Op::Remount | Op::Kill => {
                (0..SLOTS).for_each(|slot| self.release(slot));
                self.inodes.reopen(*op == Op::Kill);
                DONE
            }
            _ => self.apply_to_contents(op),
        }
    }

    fn create(&self, at: At, mode: u32, excl: bool) -> OpResult {
        let (mut location, mut links) = (self.parent(at)?, 0);
        loop {
            if location.is_dots() {
                return Err(if excl { libc::EEXIST } else { libc::EISDIR });
            }
            let Some(found) = self.child(&location)? else {
                return self.make(&location, libc::S_IFREG | mode & 0o7777, (0, 0), None);
            };
            match kind(&found) {
                _ if excl => return Err(libc::EEXIST),
                libc::S_IFDIR => return Err(libc::EISDIR),
                libc::S_IFLNK if links == 40 => return Err(libc::ELOOP),
                libc::S_IFLNK => {
                    links += 1;
                    location = self.parent_from(location.dirs, &self.inodes.readlink(found.ino)?, &mut links)?;
                }
                _ => return DONE,
            }
        }
    }

    fn link(&self, ino: u64, to: At) -> OpResult {
        let location = self.vacant(to)?;
        match self.inodes.getattr(ino)? {
            record if is_dir(&record) => Err(libc::EPERM),
            record if record.nlink == 0 => Err(libc::ENOENT),
            _ => {
                self.hold_reference(self.inodes.link(ino, location.dir(), &location.name)?);
                DONE
            }
        }
    }

    fn unlink(&self, location: &Location) -> OpResult {
        if location.is_dots() || is_dir(&self.child(location)?.ok_or(libc::ENOENT)?) {
            return Err(libc::EISDIR);
        }
        self.inodes.unlink(location.dir(), &location.name).and(DONE)
    }

    fn rmdir(&self, location: &Location) -> OpResult {
        match location.name.as_slice() {
            b"." => return Err(libc::EINVAL),
            b".." => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        if !is_dir(&self.child(location)?.ok_or(libc::ENOENT)?) {
            return Err(libc::ENOTDIR);
        }
        self.inodes.rmdir(location.dir(), &location.name).and(DONE)
    }

    fn remove_all(&self, location: &Location) -> OpResult {
        let found = self.child(location)?.ok_or(libc::ENOENT)?;
        if !is_dir(&found) {
            return self.unlink(location);
        }
        for (name, _) in self.entries(found.ino)? {
            self.remove_all(&Location { dirs: vec![found.ino], name })?;
        }
        self.rmdir(location)
    }

    fn rename(&self, from: &Location, to: &Location, how: Replace) -> OpResult {
        if from.is_dots() {
            return Err(libc::EBUSY);
        }
        if to.is_dots() {
            return Err(if how == Replace::Forbid { libc::EEXIST } else { libc::EBUSY });
        }
        let old = self.child(from)?.ok_or(libc::ENOENT)?;
        let new = self.child(to)?;
        match (how, &new) {
            (Replace::Exchange, None) => return Err(libc::ENOENT),
            (Replace::Forbid, Some(_)) => return Err(libc::EEXIST),
            _ if to.dirs.contains(&old.ino) => return Err(libc::EINVAL),
            (Replace::Exchange, Some(new)) if from.dirs.contains(&new.ino) => return Err(libc::EINVAL),
            (_, Some(new)) if from.dirs.contains(&new.ino) => return Err(libc::ENOTEMPTY),
            (_, Some(new)) if new.ino == old.ino => return DONE,
            (Replace::Exchange, _) => {}
            (_, Some(new)) if is_dir(&old) && !is_dir(new) => return Err(libc::ENOTDIR),
            (_, Some(new)) if !is_dir(&old) && is_dir(new) => return Err(libc::EISDIR),
            _ => {}
        }
        self.inodes.rename((from.dir(), &from.name), (to.dir(), &to.name), how).and(DONE)
    }

    /// A regular file that is opened for reading or writing.
    fn file(&self, at: At) -> OpResult<Record> {
        let record = self.walk(at, true)?;
        if is_dir(&record) { Err(libc::EISDIR) } else { Ok(record) }
    }

    /// The kernel's part before a file's content changes: it removes the file's capabilities.
    fn before_change(&self, ino: u64) -> OpResult<()> {
        match self.inodes.getxattr(ino, CAPABILITY_NAME.as_bytes()) {
            Ok(_) => self.inodes.removexattr(ino, CAPABILITY_NAME.as_bytes()),
            Err(libc::ENODATA) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn write(&self, ino: u64, offset: u64, bytes: &[u8]) -> OpResult {
        if !bytes.is_empty() {
            self.before_change(ino)?;
            self.inodes.write(ino, offset, bytes)?;
        }
        Ok(Outcome::Count(bytes.len() as u64))
    }

    fn resize(&self, ino: u64, size: u64, mtime: Option<Stamp>) -> OpResult {
        self.before_change(ino)?;
        let changed = self.inodes.setattr(ino, &Change { size: Some(size), mtime, ..Change::default() })?;
        assert_eq!(changed.size, size, "setattr's answer");
        DONE
    }

    fn read(&self, ino: u64, offset: u64, len: usize) -> OpResult<Vec<u8>> {
        let size = self.inodes.getattr(ino)?.size;
        let len = (len as u64).min(size.saturating_sub(offset)) as usize;
        if len == 0 { Ok(Vec::new()) } else { self.inodes.read(ino, offset, len) }
    }

    fn all(&self, ino: u64) -> OpResult<Vec<u8>> {
        self.read(ino, 0, usize::MAX)
    }

    fn apply_to_contents(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::Open { at, write, truncate } => {
                let found = if write || truncate { self.file(at)? } else { self.walk(at, true)? };
                if truncate { self.resize(found.ino, 0, Some(Stamp::Now)) } else { DONE }
            }
            Op::Read { at, offset, len } => self.read(self.file(at)?.ino, offset, len).map(Outcome::Bytes),
            Op::Write { at, offset, len, fill } => self.write(self.file(at)?.ino, offset, &pattern(fill, offset, len)),
            Op::Append { at, len, fill } => {
                let file = self.file(at)?;
                self.write(file.ino, file.size, &pattern(fill, file.size, len))
            }
            Op::Truncate { at, size } => match self.walk(at, true)? {
                found if is_dir(&found) => Err(libc::EISDIR),
                found if kind(&found) != libc::S_IFREG => Err(libc::EINVAL),
                found => self.resize(found.ino, size, None),
            },
            Op::Allocate { at, how, offset, len } => {
                let ino = self.file(at)?.ino;
                let mode = fallocate_mode(how).ok_or(libc::EOPNOTSUPP)?;
                self.before_change(ino)?;
                self.inodes.fallocate(ino, mode, offset, len).and(DONE)
            }
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                let (source, target) = (self.walk(from, true)?, self.file(to)?);
                if is_dir(&source) {
                    return Err(libc::EISDIR);
                }
                let len = len.min(source.size.saturating_sub(from_offset));
                let overlap = to_offset + len > from_offset && to_offset < from_offset + len;
                if source.ino == target.ino && overlap {
                    return Err(libc::EINVAL);
                }
                self.copy((source.ino, from_offset), (target.ino, to_offset), len)
            }
            Op::Seek { at, offset, hole } => {
                self.inodes.seek(self.walk(at, true)?.ino, offset, hole).map(Outcome::Count)
            }
            Op::Fsync { at, data_only } => self.inodes.fsync(self.walk(at, true)?.ino, data_only).and(DONE),
            Op::Mapped { at, offset, len, fill, shared } => {
                let ino = self.file(at)?.ino;
                let bytes = pattern(fill, offset, len);
                match shared {
                    // Written back some time, and read from the page until then.
                    true => self.inodes.write(ino, offset, &bytes)?,
                    false => return Ok(Outcome::Bytes(bytes)),
                }
                self.read(ino, offset, len).map(Outcome::Bytes)
            }
            Op::Stat { at, follow } => self.walk(at, follow).map(stat),
            Op::ReadLink { at } => match self.walk(at, false)? {
                found if kind(&found) == libc::S_IFLNK => self.inodes.readlink(found.ino).map(Outcome::Bytes),
                _ => Err(libc::EINVAL),
            },
            Op::List { at } => self.list(self.walk(at, true)?.ino),
            _ => self.apply_to_attributes(op),
        }
    }

    fn copy(&self, from: (u64, u64), to: (u64, u64), len: u64) -> OpResult {
        let mut copied = 0;
        while copied < len {
            self.before_change(to.0)?;
            match self.inodes.copy_range((from.0, from.1 + copied), (to.0, to.1 + copied), len - copied)? {
                0 => break,
                more => copied += more,
            }
        }
        Ok(Outcome::Count(copied))
    }

    fn entries(&self, ino: u64) -> OpResult<Vec<(Vec<u8>, u32)>> {
        let mut listing: Listing = (Vec::new(), 0);
        while self.list_more(ino, &mut listing)? {}
        Ok(listing.0)
    }

    /// Whether there was more.
    fn list_more(&self, ino: u64, listing: &mut Listing) -> OpResult<bool> {
        let found = self.inodes.readdir(ino, listing.1)?;
        listing.1 = found.last().map_or(listing.1, |entry| entry.next);
        let more = !found.is_empty();
        listing.0.extend(found.into_iter().map(|entry| (entry.name, entry.kind)));
        Ok(more)
    }

    fn list(&self, ino: u64) -> OpResult {
        self.listable(ino)?;
        let mut entries = self.entries(ino)?;
        entries.sort();
        Ok(Outcome::Entries(entries))
    }

    fn listable(&self, ino: u64) -> OpResult<()> {
        match self.inodes.getattr(ino)? {
            record if !is_dir(&record) => Err(libc::ENOTDIR),
            record if record.nlink == 0 => Err(libc::ENOENT),
            _ => Ok(()),
        }
    }

    fn apply_to_attributes(&mut self, op: &Op) -> OpResult {
        let (ino, change) = match *op {
            Op::Chmod { at, mode } => {
                (self.walk(at, true)?.ino, Change { mode: Some(mode & 0o7777), ..Change::default() })
            }
            Op::Chown { at, uid, gid, follow } => {
                let found = self.walk(at, follow)?;
                let kept = if found.mode & 0o2010 == 0o2010 { !0o6000 } else { !0o4000 };
                let mode = found.mode & 0o7777;
                let killed = !is_dir(&found) && mode & kept != mode;
                if !is_dir(&found) {
                    self.before_change(found.ino)?;
                }
                (found.ino, Change { uid, gid, mode: killed.then_some(mode & kept), ..Change::default() })
            }
            Op::Utimes { at, mtime, follow } => {
                let mtime = (mtime != Stamp::Omit).then_some(mtime);
                let atime = Some(Stamp::Time(1_234_567_890, 0));
                (self.walk(at, follow)?.ino, Change { mtime, atime, ..Change::default() })
            }
            _ => return self.apply_to_xattrs(op),
        };
        self.inodes.setattr(ino, &change)?;
        DONE
    }

    /// The inode, if it may have such an attribute; else `otherwise`.
    fn xattr_inode(&self, at: At, name: &str, follow: bool, otherwise: i32) -> OpResult<u64> {
        let found = self.walk(at, follow)?;
        let is_supported = matches!(kind(&found), libc::S_IFREG | libc::S_IFDIR);
        if name.starts_with("user.") && !is_supported { Err(otherwise) } else { Ok(found.ino) }
    }

    fn apply_to_xattrs(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::SetXattr { at, name, len, fill, flag, follow } => {
                let ino = self.xattr_inode(at, name, follow, libc::EPERM)?;
                let flags = match flag {
                    XattrFlag::Either => 0,
                    XattrFlag::MustCreate => libc::XATTR_CREATE,
                    XattrFlag::MustReplace => libc::XATTR_REPLACE,
                };
                self.inodes.setxattr(ino, name.as_bytes(), &xattr_value(name, fill, len), flags).and(DONE)
            }
            Op::GetXattr { at, name, room, follow } => {
                let ino = self.xattr_inode(at, name, follow, libc::ENODATA)?;
                match self.inodes.getxattr(ino, name.as_bytes())? {
                    value if room == 0 => Ok(Outcome::Count(value.len() as u64)),
                    value if value.len() > room => Err(libc::ERANGE),
                    value => Ok(Outcome::Bytes(value)),
                }
            }
            Op::ListXattrs { at, follow } => {
                let mut names = self.inodes.listxattr(self.walk(at, follow)?.ino)?;
                names.sort();
                Ok(Outcome::Names(names))
            }
            Op::RemoveXattr { at, name, follow } => {
                let ino = self.xattr_inode(at, name, follow, libc::EPERM)?;
                self.inodes.removexattr(ino, name.as_bytes()).and(DONE)
            }
            _ => self.apply_to_held(op),
        }
    }

    fn held(&self, slot: usize) -> &Held {
        self.slots[slot].as_ref().unwrap_or_else(|| panic!("slot {slot} holds nothing"))
    }

    fn release(&mut self, slot: usize) {
        if let Some(held) = self.slots[slot].take().filter(|held| held.ino != ROOT) {
            self.inodes.forget(held.ino, 1);
        }
    }

    fn apply_to_held(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::Hold { slot, at, write } | Op::HoldMap { slot, at, write } => {
                self.release(slot);
                let found = self.walk(at, true)?;
                if is_dir(&found) && write {
                    return Err(libc::EISDIR);
                }
                if is_dir(&found) && matches!(op, Op::HoldMap { .. }) {
                    return Err(libc::ENODEV);
                }
                // One of the references that this step took is kept; the root needs none.
                let mut taken = self.taken.borrow_mut();
                taken.iter().position(|ino| *ino == found.ino).map(|at| taken.swap_remove(at));
                drop(taken);
                self.slots[slot] = Some(Held { ino: found.ino, write, listing: Default::default() });
            }
            Op::HeldRead { slot, offset, len } => {
                return self.read(self.held(slot).ino, offset, len).map(Outcome::Bytes);
            }
            Op::HeldMapLoad { slot, offset, len } => {
                return self.read(self.held(slot).ino, offset, len).map(Outcome::Bytes);
            }
            Op::HeldWrite { slot, offset, len, fill } => {
                let held = self.held(slot);
                let bytes = pattern(fill, offset, len);
                return if held.write { self.write(held.ino, offset, &bytes) } else { Err(libc::EBADF) };
            }
            Op::HeldMapStore { slot, offset, len, fill } => {
                self.inodes.write(self.held(slot).ino, offset, &pattern(fill, offset, len))?;
            }
            Op::HeldTruncate { slot, size } => {
                let held = self.held(slot);
                return if held.write { self.resize(held.ino, size, Some(Stamp::Now)) } else { Err(libc::EINVAL) };
            }
            Op::HeldStat { slot } => return self.inodes.getattr(self.held(slot).ino).map(stat),
            Op::HeldSync { slot } => self.inodes.fsync(self.held(slot).ino, false)?,
            Op::HeldList { slot } => return self.list(self.held(slot).ino),
            Op::HeldListBegin { slot } => {
                let (ino, mut listing) = (self.held(slot).ino, Listing::default());
                self.listable(ino)?;
                self.list_more(ino, &mut listing)?;
                self.slots[slot].as_mut().expect("it is held").listing = listing;
            }
            Op::HeldListEnd { slot } => {
                let held = self.slots[slot].as_mut().expect("it is held");
                let (ino, mut listing) = (held.ino, std::mem::take(&mut held.listing));
                self.listable(ino)?;
                while self.list_more(ino, &mut listing)? {}
                return Ok(Outcome::Entries(listing.0));
            }
            Op::Release { slot } => self.release(slot),
            _ => unreachable!("{op:?} is nobody's"),
        }
        DONE
    }

    fn full_record(&self, ino: u64) -> OpResult<Record> {
        let mut record = self.inodes.getattr(ino)?;
        for name in self.inodes.listxattr(ino)? {
            record.xattrs.insert(name.clone(), self.inodes.getxattr(ino, &name)?);
        }
        match kind(&record) {
            libc::S_IFREG => record.hash = Some(Sha256::digest(self.all(ino)?).into()),
            libc::S_IFLNK => record.target = Some(self.inodes.readlink(ino)?),
            libc::S_IFDIR => record.size = 0,
            _ => {}
        }
        Ok(record)
    }

    fn scan(&self, dir: u64, path: &[u8], tree: &mut Tree) {
        let mut from = 0;
        loop {
            let listed = self.inodes.readdir(dir, from).expect("readdir");
            let Some(last) = listed.last() else { return };
            from = last.next;
            listed.iter().for_each(|entry| self.scan_entry(dir, path, entry, tree));
        }
    }

    fn scan_entry(&self, dir: u64, path: &[u8], entry: &Listed, tree: &mut Tree) {
        let path = [path, b"/", entry.name.as_slice()].concat();
        let shown = crate::support::show(&path);
        let found = self.lookup(dir, &entry.name).and_then(|found| self.full_record(found.ino));
        let record = found.unwrap_or_else(|errno| panic!("{shown}: errno {errno}"));
        assert_eq!((entry.ino, entry.kind), (record.ino, kind(&record)), "{shown} is listed as another");
        let is_dir = is_dir(&record);
        assert!(tree.records.insert(path.clone(), record).is_none(), "{shown} is listed twice");
        if is_dir {
            self.scan(entry.ino, &path, tree);
        }
    }
}

fn stat(mut record: Record) -> Outcome {
    if is_dir(&record) {
        record.size = 0;
    }
    Outcome::Stat(Box::new(record))
}

/// The fallocate modes that FUSE supports.
fn fallocate_mode(how: Alloc) -> Option<i32> {
    match how {
        Alloc::Plain => Some(0),
        Alloc::KeepSize => Some(libc::FALLOC_FL_KEEP_SIZE),
        Alloc::PunchHole => Some(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        Alloc::ZeroRange => Some(libc::FALLOC_FL_ZERO_RANGE),
        Alloc::ZeroKeepSize => Some(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        Alloc::Collapse | Alloc::Insert => None,
    }
}

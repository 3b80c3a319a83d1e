//! The model's inodes, and path resolution.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::image::{Initial, Start};
use super::op::{SLOTS, Special, expand};
use crate::support::tree::Record;

/// An inode's identity for the whole run; never used again.
pub type Id = u64;
pub const ROOT: Id = 1;
const NAME_MAX: usize = 255;
/// The kernel follows so many symlinks for one path.
const LINKS_MAX: u32 = 40;

/// Why a step has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError {
    /// The kernel refuses it with this.
    Errno(i32),
    /// It makes no sense here (an empty slot, a path out of the tree, a device that would be opened): do not run it.
    Skip,
}

pub type Step<T> = Result<T, StepError>;

pub fn refuse<T>(errno: i32) -> Step<T> {
    Err(StepError::Errno(errno))
}

/// The model's knowledge of a modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtime {
    /// It was set, or the image has it.
    Exactly(i64, u32),
    /// Something changed during the run, so it must lie in it.
    Recent,
    /// It is not said whether the last change counts as one.
    Any,
}

/// A regular file's content. Its hash is kept until it changes.
#[derive(Clone, Debug, Default)]
pub struct Content {
    bytes: Vec<u8>,
    hash: Cell<Option<[u8; 32]>>,
}

#[derive(Clone, Debug)]
pub enum Body {
    File(Content),
    Dir { entries: BTreeMap<String, Id>, parent: Id },
    Symlink(String),
    Special(Special, (u32, u32)),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Number of names; 1 for the root, which has none.
    pub names: u64,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub id: Id,
    pub write: bool,
    pub map: bool,
}

/// A directory being listed.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Names that came or went since it began.
    pub touched: BTreeSet<String>,
}

/// A POSIX file system in memory, as root sees one.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) nodes: BTreeMap<Id, Node>,
    next: Id,
    pub(super) slots: [Option<Held>; SLOTS],
    /// Of slots that hold a directory.
    pub(super) listings: [Option<Listing>; SLOTS],
    /// The process's own, which is asked for, not set: other tests share it.
    pub(super) umask: u32,
}

impl Content {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, hash: Cell::new(None) }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn edit(&mut self) -> &mut Vec<u8> {
        self.hash.set(None);
        &mut self.bytes
    }

    pub fn hash(&self) -> [u8; 32] {
        let hash = self.hash.get().unwrap_or_else(|| Sha256::digest(&self.bytes).into());
        self.hash.set(Some(hash));
        hash
    }

    /// The bytes from `offset`, at most `len`, as read(2) would give them.
    pub fn range(&self, offset: u64, len: usize) -> &[u8] {
        let from = self.bytes.len().min(offset as usize);
        &self.bytes[from..self.bytes.len().min(from + len)]
    }

    /// Puts bytes at `offset`, growing over a hole where needed.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        let all = self.edit();
        all.resize(all.len().max(to), 0);
        all[from..to].copy_from_slice(bytes);
    }
}

impl Body {
    pub fn empty_dir(parent: Id) -> Self {
        Body::Dir { entries: BTreeMap::new(), parent }
    }

    /// The type bits of `st_mode`.
    pub fn kind(&self) -> u32 {
        match self {
            Body::File(_) | Body::Special(Special::Regular, _) => libc::S_IFREG,
            Body::Dir { .. } => libc::S_IFDIR,
            Body::Symlink(_) => libc::S_IFLNK,
            Body::Special(Special::Fifo, _) => libc::S_IFIFO,
            Body::Special(Special::Char, _) => libc::S_IFCHR,
            Body::Special(Special::Block, _) => libc::S_IFBLK,
            Body::Special(Special::Socket, _) => libc::S_IFSOCK,
        }
    }
}

impl Node {
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir { .. })
    }
}

impl Model {
    /// The image's tree.
    pub fn new(image: &[Initial]) -> Self {
        let root = Node {
            body: Body::empty_dir(ROOT),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime::Any,
            xattrs: BTreeMap::new(),
            names: 1,
        };
        let nodes = BTreeMap::from([(ROOT, root)]);
        let mut model =
            Self { nodes, next: ROOT + 1, slots: [None; SLOTS], listings: [const { None }; SLOTS], umask: umask() };
        image.iter().for_each(|entry| model.start(entry));
        model
    }

    fn start(&mut self, entry: &Initial) {
        let (dir, name) = self.parent(entry.path).unwrap();
        let body = match &entry.start {
            Start::Link(target) => {
                let id = self.walk(target, false).unwrap();
                self.add_name(dir, name, id);
                return;
            }
            Start::Dir => Body::empty_dir(dir),
            Start::File { .. } => Body::File(Content::new(entry.content())),
            Start::Symlink(target) => Body::Symlink((*target).to_owned()),
            Start::Special(kind, rdev) => Body::Special(*kind, *rdev),
        };
        let node = Node {
            body,
            mode: entry.mode,
            uid: entry.owner.0,
            gid: entry.owner.1,
            mtime: Mtime::Exactly(entry.mtime.0, entry.mtime.1),
            xattrs: entry.xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone())).collect(),
            names: 0,
        };
        let id = self.add(node);
        self.add_name(dir, name, id);
    }

    /// A new inode without a name.
    pub(super) fn add(&mut self, node: Node) -> Id {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        id
    }

    /// Gives an inode a name.
    pub(super) fn add_name(&mut self, dir: Id, name: String, id: Id) {
        if let Body::Dir { parent, .. } = &mut self.node_mut(id).body {
            *parent = dir;
        }
        self.node_mut(id).names += 1;
        self.record_change(dir, &name);
        let before = self.entries_mut(dir).insert(name, id);
        assert_eq!(before, None, "the model lost an inode");
    }

    /// Takes a name away. The inode stays as long as something holds it.
    pub(super) fn remove_name(&mut self, dir: Id, name: &str) -> Id {
        let id = self.entries_mut(dir).remove(name).unwrap();
        self.record_change(dir, name);
        self.node_mut(id).names -= 1;
        id
    }

    fn record_change(&mut self, dir: Id, name: &str) {
        for (held, listing) in self.slots.iter().zip(&mut self.listings) {
            if let (Some(held), Some(listing)) = (held, listing)
                && held.id == dir
            {
                listing.touched.insert(name.to_owned());
            }
        }
    }

    /// Forgets an inode that has no name and is not held.
    pub(super) fn drop_unused(&mut self, id: Id) {
        if self.node(id).names == 0 && !self.slots.iter().flatten().any(|held| held.id == id) {
            self.nodes.remove(&id);
        }
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    pub(super) fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn entries(&self, dir: Id) -> &BTreeMap<String, Id> {
        match &self.node(dir).body {
            Body::Dir { entries, .. } => entries,
            _ => panic!("inode {dir} of the model is no directory"),
        }
    }

    pub(super) fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.node_mut(dir).body {
            Body::Dir { entries, .. } => entries,
            _ => panic!("inode {dir} of the model is no directory"),
        }
    }

    /// How many inodes there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn held(&self, slot: usize) -> Step<Held> {
        self.slots[slot].ok_or(StepError::Skip)
    }

    /// `st_nlink`.
    pub fn nlink(&self, id: Id) -> u64 {
        let node = self.node(id);
        match &node.body {
            Body::Dir { entries, .. } if node.names > 0 => {
                2 + entries.values().filter(|child| self.node(**child).is_dir()).count() as u64
            }
            _ => node.names,
        }
    }

    /// Whether `dir` is `above` or lies below it.
    pub(super) fn is_below(&self, mut dir: Id, above: Id) -> bool {
        loop {
            match &self.node(dir).body {
                _ if dir == above => return true,
                Body::Dir { parent, .. } if dir != ROOT => dir = *parent,
                _ => return false,
            }
        }
    }

    /// One component in a directory.
    pub(super) fn child(&self, dir: Id, name: &str) -> Step<Option<Id>> {
        if name.len() > NAME_MAX {
            return refuse(libc::ENAMETOOLONG);
        }
        Ok(self.entries(dir).get(name).copied())
    }

    /// The directory that holds a path's last component, and that component.
    pub fn parent(&self, at: &str) -> Step<(Id, String)> {
        self.parent_from(ROOT, &expand(at), &mut 0)
    }

    pub(super) fn parent_from(&self, dir: Id, path: &str, links: &mut u32) -> Step<(Id, String)> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = if above.is_empty() && path.starts_with('/') {
            return Err(StepError::Skip);
        } else {
            self.follow(dir, above, true, links)?
        };
        if !self.node(dir).is_dir() {
            return refuse(libc::ENOTDIR);
        }
        Ok((dir, name.to_owned()))
    }

    /// The inode at a path; a symlink at its end is followed if asked.
    pub fn walk(&self, at: &str, follow: bool) -> Step<Id> {
        self.follow(ROOT, &expand(at), follow, &mut 0)
    }

    fn follow(&self, mut dir: Id, path: &str, last_too: bool, links: &mut u32) -> Step<Id> {
        // Nothing of that name is in any root directory.
        if path.starts_with("/nonexistent/") {
            return refuse(libc::ENOENT);
        }
        let mut rest = path.split('/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = rest.next() {
            let Body::Dir { parent, .. } = &self.node(dir).body else {
                return refuse(libc::ENOTDIR);
            };
            let next = match name {
                "." => dir,
                // The model does not know what is above the root.
                ".." if dir == ROOT => return Err(StepError::Skip),
                ".." => *parent,
                _ => self.child(dir, name)?.ok_or(StepError::Errno(libc::ENOENT))?,
            };
            dir = match &self.node(next).body {
                Body::Symlink(target) if last_too || rest.peek().is_some() => {
                    count_link(links)?;
                    self.follow(dir, target, true, links)?
                }
                _ => next,
            };
        }
        Ok(dir)
    }

    /// Every path from the root, as a scan names them.
    pub fn paths(&self) -> BTreeMap<Vec<u8>, Id> {
        let mut paths = BTreeMap::from([(b"/".to_vec(), ROOT)]);
        let mut open = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = open.pop() {
            for (name, id) in self.entries(dir) {
                let path = [&path, b"/".as_slice(), name.as_bytes()].concat();
                if self.node(*id).is_dir() {
                    open.push((path.clone(), *id));
                }
                paths.insert(path, *id);
            }
        }
        paths
    }

    /// An inode as a scan should find it; its time says nothing.
    pub fn record(&self, id: Id) -> Record {
        let node = self.node(id);
        let (size, rdev, target, hash) = match &node.body {
            Body::File(content) => (content.bytes().len(), (0, 0), None, Some(content.hash())),
            Body::Symlink(target) => (target.len(), (0, 0), Some(target.clone().into_bytes()), None),
            Body::Special(Special::Char | Special::Block, rdev) => (0, *rdev, None, None),
            _ => (0, (0, 0), None, None),
        };
        Record {
            mode: node.body.kind() | node.mode,
            uid: node.uid,
            gid: node.gid,
            size: size as u64,
            rdev,
            mtime: (0, 0),
            nlink: self.nlink(id),
            ino: id,
            target,
            xattrs: node.xattrs.clone(),
            hash,
        }
    }
}

/// One more symlink of a path.
pub(super) fn count_link(links: &mut u32) -> Step<()> {
    *links += 1;
    if *links > LINKS_MAX { refuse(libc::ELOOP) } else { Ok(()) }
}

/// This process's umask.
pub fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

//! The index builder: makes a layer's index from the entries of its tar.
//!
//! Entries are processed in the tar's order, as unpacking tools do; what depends on the whole layer (whiteouts beside a
//! new entry of the same name, hard links to later entries) is resolved after the last one.

use super::index::{Node, Of, node_flags};
use super::reader::{Body, Entry, Reader};
use super::writer::Writer;
use super::{EntryError, LayerError, Limits};
use crate::digest::Digest;
use crate::meta::Kind;
use crate::name::{self, show};
use crate::whiteout::{self, Marker};
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io::BufRead;
use zerocopy::FromZeros;

/// A layer's index without its DiffID, which is known only when the whole tar has been read.
pub struct Draft {
    writer: Writer,
    entries: u64,
    warnings: Vec<String>,
}

impl Draft {
    /// Completes the index with the layer's DiffID.
    pub fn seal(self, diff_id: &Digest) -> Vec<u8> {
        self.writer.seal(Of::Layer, diff_id)
    }

    /// Returns the number of the tar's entries.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the irregularities that were resolved by rule, one line each, without the layer's name.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Indexes one uncompressed tar, and reads the stream to its very end. An error discards all entries: an index
/// describes a whole layer.
pub fn index_tar<R: BufRead>(tar: &mut R, limits: &Limits) -> Result<Draft, LayerError> {
    let mut reader = Reader::new(tar, limits);
    let mut builder = Builder::new(limits);
    while let Some(entry) = reader.next_entry()? {
        builder.entries += 1;
        if builder.entries > limits.entries {
            return Err(LayerError::Limit(format!("has more than {} entries", limits.entries)));
        }
        let path = entry.path.clone();
        builder.add(entry).map_err(|why| LayerError::Entry { path, why })?;
        if builder.metadata > limits.metadata {
            return Err(LayerError::Limit(format!("has more than {} bytes of names and attributes", limits.metadata)));
        }
    }
    builder.finish()
}

/// How many symbolic links may be followed on the way to one entry: the kernel's own limit (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;
/// The number of warnings that are reported one by one.
const MAX_WARNINGS: usize = 10;

/// A name in a directory of this layer.
#[derive(Clone, Copy, Default)]
struct Child {
    node: Option<u32>,
    whiteout: bool,
}

/// The result of a path walk in the layer.
enum Reached {
    Found(u32),
    /// A directory does not have the next name; holds the rest of the path.
    Missing {
        dir: u32,
        name: Vec<u8>,
        rest: VecDeque<Vec<u8>>,
    },
    /// A component of the path is not a directory.
    Blocked,
}

struct Builder<'l> {
    limits: &'l Limits,
    writer: Writer,
    /// Inodes in creation order; the parents of directories are up to date, entries are not in `writer` yet.
    nodes: Vec<Node>,
    /// The names in each directory.
    children: HashMap<u32, HashMap<Box<[u8]>, Child>>,
    /// Placeholder inodes of hard links whose target did not exist when they were read, and the targets' paths.
    pending: HashMap<u32, Vec<u8>>,
    /// Total length in bytes of the symbolic link targets that were followed.
    followed: Cell<u64>,
    entries: u64,
    metadata: u64,
    duplicates: u64,
    warnings: Vec<String>,
}

const ROOT: u32 = 0;

impl<'l> Builder<'l> {
    fn new(limits: &'l Limits) -> Builder<'l> {
        let mut builder = Builder {
            limits,
            writer: Writer::default(),
            nodes: Vec::new(),
            children: HashMap::new(),
            pending: HashMap::new(),
            followed: Cell::new(0),
            entries: 0,
            metadata: 0,
            duplicates: 0,
            warnings: Vec::new(),
        };
        builder.nodes.push(implicit_dir(ROOT));
        builder.clear_bare(ROOT);
        builder
    }

    fn add(&mut self, entry: Entry) -> Result<(), EntryError> {
        let path = entry.path.clone();
        let parts = name::components(&path)?;
        self.metadata += path.len() as u64 + entry.xattrs.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum::<u64>();
        let Some((last, parents)) = parts.split_last() else {
            return self.add_root(entry);
        };
        for parent in parents {
            match whiteout::classify(parent)? {
                Marker::Plain => name::check(parent)?,
                Marker::Reserved => return Ok(()),
                Marker::Opaque | Marker::Whiteout(_) => return Err(EntryError::InsideWhiteout),
            }
        }
        match whiteout::classify(last)? {
            Marker::Reserved => {}
            Marker::Opaque => {
                if let Some(dir) = self.marked_dir(parents)? {
                    self.set_flag(dir, node_flags::OPAQUE);
                }
            }
            Marker::Whiteout(hidden) => {
                name::check(hidden)?;
                if let Some(dir) = self.marked_dir(parents)? {
                    self.child_mut(dir, hidden).whiteout = true;
                }
            }
            Marker::Plain => {
                name::check(last)?;
                let dir = self.make_dir(parents)?;
                self.clear_bare(dir);
                self.place(dir, last, entry)?;
            }
        }
        Ok(())
    }

    fn add_root(&mut self, entry: Entry) -> Result<(), EntryError> {
        if !matches!(entry.body, Body::Dir) {
            return Err(EntryError::RootNotDir);
        }
        let node = self.node_of(&entry, ROOT)?;
        self.update_dir(ROOT, node);
        Ok(())
    }

    /// Puts an entry's inode under a name. A directory over a directory replaces its attributes only; anything else
    /// replaces the inode, and everything below the old one becomes unreachable.
    fn place(&mut self, dir: u32, name: &[u8], entry: Entry) -> Result<(), EntryError> {
        let existing = self.child(dir, name);
        let is_dir = matches!(entry.body, Body::Dir);
        let over = existing.filter(|id| is_dir && self.nodes[*id as usize].is_dir());
        if existing.is_some_and(|id| over.is_none() || !self.nodes[id as usize].has(node_flags::IMPLICIT)) {
            self.warn_duplicate(&entry.path);
        }
        if let Some(id) = over {
            let node = self.node_of(&entry, dir)?;
            self.update_dir(id, node);
            return Ok(());
        }
        let id = match &entry.body {
            Body::Link(target) => self.link(target, &entry)?,
            _ => {
                let node = self.node_of(&entry, dir)?;
                self.push(node)?
            }
        };
        self.child_mut(dir, name).node = Some(id);
        Ok(())
    }

    /// Returns the target inode of a hard link: one of this layer if it exists already, else a placeholder that is
    /// resolved when the whole layer has been read.
    fn link(&mut self, target: &[u8], entry: &Entry) -> Result<u32, EntryError> {
        let parts = name::components(target)?;
        if let Some(id) = self.find(&parts)? {
            if self.nodes[id as usize].is_dir() {
                return Err(EntryError::LinkToDir(target.to_vec()));
            }
            return Ok(id);
        }
        let mut node = Node::new_zeroed();
        let joined = parts.join(&b'/');
        node.data = u64::from(self.writer.string(&joined)?).into();
        node.count = (joined.len() as u32).into();
        let id = self.push(node)?;
        self.pending.insert(id, entry.path.clone());
        self.metadata += joined.len() as u64;
        Ok(id)
    }

    fn node_of(&mut self, entry: &Entry, parent: u32) -> Result<Node, EntryError> {
        let mut node = Node::new_zeroed();
        let (kind, size) = match &entry.body {
            Body::Dir => (Kind::Dir, 0),
            Body::File { offset, size } => {
                node.data = (*offset).into();
                node.blocks = blocks(*size);
                (Kind::File, *size)
            }
            Body::Sparse { size, extents } => {
                node.data = u64::from(self.writer.extents(extents)?).into();
                node.count = (extents.len() as u32).into();
                self.metadata += size_of_val(extents.as_slice()) as u64;
                node.flags = node_flags::SPARSE.into();
                node.blocks = blocks(extents.iter().map(|e| e.len.get()).sum());
                (Kind::File, *size)
            }
            Body::Symlink(target) => {
                node.data = u64::from(self.writer.string(target)?).into();
                node.count = (target.len() as u32).into();
                self.metadata += target.len() as u64;
                (Kind::Symlink, target.len() as u64)
            }
            Body::Device(kind, number) => {
                node.data = u64::from(*number).into();
                (*kind, 0)
            }
            Body::Fifo => (Kind::Fifo, 0),
            Body::Link(_) => return Err(EntryError::NoTarget),
        };
        let mode = if kind == Kind::Symlink { 0o777 } else { entry.mode };
        node.mode = (kind.bits() | mode).into();
        node.uid = entry.uid.into();
        node.gid = entry.gid.into();
        node.size = size.into();
        node.mtime_sec = entry.mtime.sec.into();
        node.mtime_nsec = entry.mtime.nsec.into();
        node.parent = parent.into();
        node.xattrs = self.writer.xattrs(&entry.xattrs.iter().collect::<Vec<_>>())?.into();
        Ok(node)
    }

    /// Replaces a directory's attributes; its parent and its opaque flag stay.
    fn update_dir(&mut self, id: u32, mut node: Node) {
        let old = &self.nodes[id as usize];
        node.parent = old.parent;
        node.flags = (old.flags.get() & node_flags::OPAQUE).into();
        self.nodes[id as usize] = node;
    }

    fn child(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.children.get(&dir).and_then(|names| names.get(name)).and_then(|child| child.node)
    }

    fn child_mut(&mut self, dir: u32, name: &[u8]) -> &mut Child {
        self.children.entry(dir).or_default().entry(name.into()).or_default()
    }

    /// Appends an inode. Implicit directories count towards the limit as entries do, for one path may create thousands.
    fn push(&mut self, node: Node) -> Result<u32, EntryError> {
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| u64::from(*id) <= self.limits.entries);
        self.nodes.push(node);
        id.ok_or(EntryError::Inodes(self.limits.entries))
    }

    fn set_flag(&mut self, id: u32, flag: u16) {
        let node = &mut self.nodes[id as usize];
        node.flags = (node.flags.get() | flag).into();
    }

    /// Returns the directory at a path, and creates missing components.
    fn make_dir(&mut self, parts: &[&[u8]]) -> Result<u32, EntryError> {
        let mut at = ROOT;
        let plain = parts.iter().all(|part| match self.child(at, part) {
            Some(child) if self.nodes[child as usize].is_dir() => {
                at = child;
                true
            }
            _ => false,
        });
        if plain {
            return Ok(at);
        }
        let mut reached = self.walk(ROOT, parts.iter().map(|p| p.to_vec()).collect(), true)?;
        loop {
            match reached {
                Reached::Found(id) if self.nodes[id as usize].is_dir() => return Ok(id),
                Reached::Found(_) | Reached::Blocked => return Err(EntryError::ParentNotDir(parts.join(&b'/'))),
                Reached::Missing { dir, name, rest } => {
                    // A symbolic link's target may contain names that no entry could have.
                    name::check(&name)?;
                    if whiteout::classify(&name)? != Marker::Plain {
                        return Err(EntryError::InsideWhiteout);
                    }
                    let made = self.push(implicit_dir(dir))?;
                    self.child_mut(dir, &name).node = Some(made);
                    reached = self.walk(made, rest, true)?;
                }
            }
        }
    }

    /// Returns the directory of a marker; `None` if the layer has something else there, as tools write that delete a
    /// directory's content one by one and then replace the directory by a file.
    fn marked_dir(&mut self, parts: &[&[u8]]) -> Result<Option<u32>, EntryError> {
        match self.make_dir(parts) {
            Ok(dir) => Ok(Some(dir)),
            Err(EntryError::ParentNotDir(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Clears the bare flag of a directory that gets an entry, and of its ancestors.
    fn clear_bare(&mut self, mut dir: u32) {
        while self.nodes[dir as usize].has(node_flags::BARE) {
            let node = &mut self.nodes[dir as usize];
            node.flags = (node.flags.get() & !node_flags::BARE).into();
            dir = node.parent.get();
        }
    }

    /// Finds a hard link's target among the layer's inodes so far. A bare directory does not count as existing.
    fn find(&self, parts: &[&[u8]]) -> Result<Option<u32>, EntryError> {
        match self.walk(ROOT, parts.iter().map(|p| p.to_vec()).collect(), false)? {
            Reached::Found(id) if !self.nodes[id as usize].has(node_flags::BARE) => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// Walks a path inside this layer from the directory `at`. Symbolic links of this layer are followed below its
    /// root, as all unpacking tools do; links of lower layers are unknown here, and a walk never leaves the layer. A
    /// link as the last component is followed only if `follow_last` is set.
    fn walk(&self, mut at: u32, mut todo: VecDeque<Vec<u8>>, follow_last: bool) -> Result<Reached, EntryError> {
        let mut followed = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                at = self.nodes[at as usize].parent.get();
                continue;
            }
            let Some(next) = self.child(at, &part) else {
                return Ok(Reached::Missing { dir: at, name: part, rest: todo });
            };
            let last = todo.is_empty();
            match self.nodes[next as usize].kind() {
                Some(Kind::Dir) => at = next,
                Some(Kind::Symlink) if follow_last || !last => {
                    let target = self.writer.string_at(&self.nodes[next as usize]);
                    followed += 1;
                    self.followed.set(self.followed.get() + target.len() as u64);
                    if followed > MAX_SYMLINKS || self.followed.get() > self.limits.metadata {
                        return Err(EntryError::SymlinkLoop);
                    }
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    let steps = target.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
                    steps.rev().for_each(|step| todo.push_front(step.to_vec()));
                }
                _ if last => return Ok(Reached::Found(next)),
                _ => return Ok(Reached::Blocked),
            }
        }
        Ok(Reached::Found(at))
    }

    fn warn_duplicate(&mut self, path: &[u8]) {
        self.duplicates += 1;
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(format!("entry `{}` is in the tar more than once; the last one is used", show(path)));
        }
    }

    /// Resolves a hard link that preceded its target; returns the placeholder itself if only a lower layer can have the
    /// target. Called when the layer is complete, and only for links that still exist. `resolved` caches results, so
    /// that a long chain of links is walked once.
    fn resolve_link(&self, link: u32, resolved: &mut HashMap<u32, u32>) -> Result<u32, LayerError> {
        let wrong = |why| LayerError::Entry { path: self.pending.get(&link).cloned().unwrap_or_default(), why };
        let mut passed = Vec::new();
        let mut at = link;
        while self.nodes[at as usize].kind().is_none() {
            if let Some(end) = resolved.get(&at) {
                at = *end;
                break;
            }
            let target = self.writer.string_at(&self.nodes[at as usize]);
            let parts = name::components(target).map_err(|e| wrong(e.into()))?;
            let Some(next) = self.find(&parts).map_err(wrong)? else { break };
            if self.nodes[next as usize].is_dir() {
                return Err(wrong(EntryError::LinkToDir(target.to_vec())));
            }
            passed.push(at);
            if passed.len() > self.pending.len() || next == at {
                return Err(wrong(EntryError::LinkCycle(target.to_vec())));
            }
            at = next;
        }
        resolved.extend(passed.into_iter().map(|link| (link, at)));
        Ok(at)
    }

    /// Numbers all reachable inodes breadth first, counts their links and writes them.
    fn finish(mut self) -> Result<Draft, LayerError> {
        let full = |why: super::TooMany| LayerError::Limit(why.to_string());
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        let mut resolved = HashMap::new();
        let root = self.writer.node(self.nodes[0].clone()).map_err(full)?;
        let mut queue = VecDeque::from([(ROOT, root)]);
        while let Some((old, new)) = queue.pop_front() {
            let mut names: Vec<(&Box<[u8]>, &Child)> = self.children.get(&old).into_iter().flatten().collect();
            names.sort_unstable_by_key(|(name, _)| *name);
            let mut links = 2;
            let start = self.writer.next_dirent().map_err(full)?;
            for (name, child) in names {
                let bare = |id: &u32| self.nodes[*id as usize].has(node_flags::BARE);
                let Some(id) = child.node.filter(|id| !(child.whiteout && bare(id))) else {
                    self.writer.dirent(name, super::WHITEOUT, 0).map_err(full)?;
                    continue;
                };
                let id = self.resolve_link(id, &mut resolved)?;
                let mut node = self.nodes[id as usize].clone();
                let mode = node.mode.get();
                let number = if node.is_dir() {
                    links += 1;
                    node.parent = new.into();
                    // A directory beside its own whiteout is opaque: it hides lower layers' directory of that name.
                    if child.whiteout {
                        node.flags = ((node.flags.get() | node_flags::OPAQUE) & !node_flags::IMPLICIT).into();
                    }
                    let number = self.writer.node(node).map_err(full)?;
                    queue.push_back((id, number));
                    number
                } else if let Some(number) = numbers.get(&id) {
                    *number
                } else {
                    let number = self.writer.node(node).map_err(full)?;
                    numbers.insert(id, number);
                    number
                };
                if mode & crate::meta::TYPE_BITS != Kind::Dir.bits() {
                    let node = self.writer.node_mut(number);
                    node.nlink = (node.nlink.get() + 1).into();
                }
                self.writer.dirent(name, number, mode).map_err(full)?;
            }
            let end = self.writer.next_dirent().map_err(full)?;
            let dir = self.writer.node_mut(new);
            (dir.data, dir.count, dir.nlink) = (u64::from(start).into(), (end - start).into(), links.into());
        }
        if self.duplicates > self.warnings.len() as u64 {
            self.warnings.push(format!("{} entries in total are in the tar more than once", self.duplicates));
        }
        Ok(Draft { writer: self.writer, entries: self.entries, warnings: self.warnings })
    }
}

fn blocks(bytes: u64) -> zerocopy::little_endian::U32 {
    u32::try_from(bytes.div_ceil(4096)).unwrap_or(u32::MAX).into()
}

/// Creates an implicit directory: mode 0755, owned by root unless a lower layer has the directory, and bare until an
/// entry is added.
fn implicit_dir(parent: u32) -> Node {
    let mut node = Node::new_zeroed();
    node.mode = (Kind::Dir.bits() | 0o755).into();
    node.flags = (node_flags::IMPLICIT | node_flags::BARE).into();
    node.parent = parent.into();
    node
}

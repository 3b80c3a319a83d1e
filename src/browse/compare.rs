//! The comparison of two images: what was added, removed and changed, and how.
//!
//! Where both images begin with the same layers, only paths that a further layer of either has an entry for can differ,
//! so the time depends on what differs and not on the images' size.

use super::entries::join;
use crate::fs::{Attr, Fs, FsError, ROOT};
use crate::layer::{Index, IndexError, WHITEOUT, node_flags};
use crate::meta::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that are compared at a time.
const PIECE: u32 = 1 << 20;

/// One of the two images.
pub struct Side {
    /// Its file system.
    pub fs: Fs,
    /// The indexes of the layers that only it has.
    pub own: Vec<Index>,
}

/// A difference at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// Only the second image has it.
    Added(Attr),
    /// Only the first image has it.
    Removed(Attr),
    /// Both have it, with other attributes or content.
    Changed(Box<Changed>),
}

/// How something changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The attributes before.
    pub old: Attr,
    /// The attributes now.
    pub new: Attr,
    /// Whether a file's content, a link's target or a device's number differs.
    pub content: bool,
    /// The extended attributes that differ.
    pub xattrs: Vec<Vec<u8>>,
}

impl Changed {
    /// Whether the kind differs.
    pub fn kind(&self) -> bool {
        self.old.kind != self.new.kind
    }

    /// Whether the mode differs.
    pub fn mode(&self) -> bool {
        self.old.mode != self.new.mode
    }

    /// Whether owner or group differ.
    pub fn owner(&self) -> bool {
        (self.old.uid, self.old.gid) != (self.new.uid, self.new.gid)
    }

    /// Whether the size of a file differs.
    pub fn size(&self) -> bool {
        self.new.kind == Kind::File && self.old.kind == Kind::File && self.old.size != self.new.size
    }

    /// Whether the modification time differs.
    pub fn time(&self) -> bool {
        self.old.mtime != self.new.mtime
    }

    /// Whether nothing differs.
    fn is_nothing(&self) -> bool {
        let attributes = self.kind() || self.mode() || self.owner() || self.size() || self.time();
        !(attributes || self.content) && self.xattrs.is_empty()
    }
}

/// The differences by absolute path.
pub type Differences = BTreeMap<Vec<u8>, Difference>;

/// The directories of the layers that only one image has, at one path; `None`: everything there may differ.
type Touched<'a> = Option<Vec<(&'a Index, u32)>>;

/// A directory that both images have.
struct Both<'a> {
    path: Vec<u8>,
    old: Attr,
    new: Attr,
    touched: Touched<'a>,
}

/// Compares what is at a path of two images, and everything below.
pub fn compare(old: &Side, new: &Side, at: &[u8]) -> Result<Differences, FsError> {
    let tops: Vec<(&Index, u32)> = old.own.iter().chain(&new.own).map(|index| (index, 0)).collect();
    let mut comparison = Comparison { old: &old.fs, new: &new.fs, found: Differences::new(), todo: Vec::new() };
    let mut is_opaque = false;
    for (index, root) in &tops {
        is_opaque |= index.node(*root)?.has(node_flags::OPAQUE);
    }
    let (mut path, mut touched) = (b"/".to_vec(), (!is_opaque).then_some(tops));
    let (mut left, mut right) = (Some(old.fs.getattr(ROOT)?), Some(new.fs.getattr(ROOT)?));
    for part in at.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        let Some(found) = below(&touched, part)? else { return Ok(Differences::new()) };
        touched = found;
        left = child(&old.fs, left, part)?;
        right = child(&new.fs, right, part)?;
        path = join(&path, part);
    }
    comparison.pair(path, left, right, touched)?;
    while let Some(both) = comparison.todo.pop() {
        comparison.dir(both)?;
    }
    Ok(comparison.found)
}

/// Returns what a directory has under a name.
fn child(fs: &Fs, dir: Option<Attr>, name: &[u8]) -> Result<Option<Attr>, FsError> {
    match dir.filter(|dir| dir.kind == Kind::Dir).map(|dir| fs.lookup(dir.ino, name)) {
        None | Some(Err(FsError::NotFound)) => Ok(None),
        Some(found) => found.map(Some),
    }
}

/// Returns the directories below one, in the layers that only one image has; `None` if none of them has an entry.
fn below<'a>(touched: &Touched<'a>, name: &[u8]) -> Result<Option<Touched<'a>>, IndexError> {
    let Some(dirs) = touched else { return Ok(Some(None)) };
    let mut found = Vec::new();
    let mut is_whole = false;
    for (index, dir) in dirs {
        let Some(entry) = index.find(index.node(*dir)?, name)? else { continue };
        if entry.node.get() == WHITEOUT {
            is_whole = true;
            continue;
        }
        let node = index.node(entry.node.get())?;
        // Anything but a directory hides all that was below.
        is_whole |= !node.is_dir() || node.has(node_flags::OPAQUE);
        found.push((*index, entry.node.get()));
    }
    Ok(match (is_whole, found.is_empty()) {
        (true, _) => Some(None),
        (false, true) => None,
        (false, false) => Some(Some(found)),
    })
}

struct Comparison<'a> {
    old: &'a Fs,
    new: &'a Fs,
    found: Differences,
    /// An explicit stack: a tree may be thousands of directories deep.
    todo: Vec<Both<'a>>,
}

impl<'a> Comparison<'a> {
    /// Compares what both images have at a path; directories later.
    fn pair(
        &mut self,
        path: Vec<u8>,
        old: Option<Attr>,
        new: Option<Attr>,
        touched: Touched<'a>,
    ) -> Result<(), FsError> {
        let (old, new) = match (old, new) {
            (None, None) => return Ok(()),
            (Some(old), None) => return self.only(path, old, self.old, Difference::Removed),
            (None, Some(new)) => return self.only(path, new, self.new, Difference::Added),
            (Some(old), Some(new)) => (old, new),
        };
        let changed = Changed { old, new, content: self.content(&old, &new)?, xattrs: self.xattrs(&old, &new)? };
        let is_same_kind = !changed.kind();
        if !changed.is_nothing() {
            self.found.insert(path.clone(), Difference::Changed(Box::new(changed)));
        }
        match (old.kind, new.kind) {
            (Kind::Dir, Kind::Dir) => self.todo.push(Both { path, old, new, touched }),
            (Kind::Dir, _) if !is_same_kind => self.content_of(&path, old, self.old, Difference::Removed)?,
            (_, Kind::Dir) if !is_same_kind => self.content_of(&path, new, self.new, Difference::Added)?,
            _ => {}
        }
        Ok(())
    }

    /// Enters everything from a path on as added or removed.
    fn only(&mut self, path: Vec<u8>, attr: Attr, fs: &Fs, how: fn(Attr) -> Difference) -> Result<(), FsError> {
        self.found.insert(path.clone(), how(attr));
        self.content_of(&path, attr, fs, how)
    }

    fn content_of(&mut self, path: &[u8], dir: Attr, fs: &Fs, how: fn(Attr) -> Difference) -> Result<(), FsError> {
        let mut todo = vec![(path.to_vec(), dir)];
        while let Some((path, dir)) = todo.pop() {
            if dir.kind != Kind::Dir {
                continue;
            }
            for entry in super::entries::entries(fs, &dir)? {
                let at = join(&path, &entry.name);
                self.found.insert(at.clone(), how(entry.attr));
                todo.push((at, entry.attr));
            }
        }
        Ok(())
    }

    fn dir(&mut self, both: Both<'a>) -> Result<(), FsError> {
        let mut names = BTreeSet::new();
        match &both.touched {
            Some(dirs) => {
                for (index, dir) in dirs {
                    for entry in index.children(index.node(*dir)?)? {
                        names.insert(index.name(entry)?.to_vec());
                    }
                }
            }
            None => {
                for (fs, dir) in [(self.old, &both.old), (self.new, &both.new)] {
                    names.extend(super::entries::entries(fs, dir)?.into_iter().map(|entry| entry.name));
                }
            }
        }
        for name in names {
            let Some(touched) = below(&both.touched, &name)? else { continue };
            let (old, new) = (child(self.old, Some(both.old), &name)?, child(self.new, Some(both.new), &name)?);
            self.pair(join(&both.path, &name), old, new, touched)?;
        }
        Ok(())
    }

    fn content(&self, old: &Attr, new: &Attr) -> Result<bool, FsError> {
        Ok(match (old.kind, new.kind) {
            (Kind::File, Kind::File) if old.size != new.size => true,
            (Kind::File, Kind::File) => self.data_differs(old, new)?,
            (Kind::Symlink, Kind::Symlink) => self.old.readlink(old.ino)? != self.new.readlink(new.ino)?,
            (Kind::Char, Kind::Char) | (Kind::Block, Kind::Block) => old.rdev != new.rdev,
            _ => false,
        })
    }

    fn data_differs(&self, old: &Attr, new: &Attr) -> Result<bool, FsError> {
        let mut at = 0;
        while at < new.size {
            let (left, right) = (self.old.read(old.ino, at, PIECE)?, self.new.read(new.ino, at, PIECE)?);
            if left != right {
                return Ok(true);
            }
            if left.is_empty() {
                break;
            }
            at += left.len() as u64;
        }
        Ok(false)
    }

    /// Returns the names of the extended attributes that differ.
    fn xattrs(&self, old: &Attr, new: &Attr) -> Result<Vec<Vec<u8>>, FsError> {
        let (left, right) = (xattrs(self.old, old)?, xattrs(self.new, new)?);
        let names: BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
        Ok(names.into_iter().filter(|name| left.get(*name) != right.get(*name)).cloned().collect())
    }
}

fn xattrs(fs: &Fs, attr: &Attr) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, FsError> {
    let listed = fs.listxattr(attr.ino, true)?;
    let names = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((name.to_vec(), fs.getxattr(attr.ino, name)?.into_owned()))).collect()
}

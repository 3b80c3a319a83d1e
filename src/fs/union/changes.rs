//! The diff of a union against its image: computed from the upper directory alone where a directory of the image shows
//! through, otherwise by comparing both.

use super::Union;
use super::inode_table::{Data, Name, NameState};
use crate::fs::changes::{Changed, Changes, Found, How, is_label, join};
use crate::fs::lower_types::Item;
use crate::fs::{Attr, FsError, Ino, ROOT};
use crate::meta::Kind;
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A directory still to be compared.
enum Step {
    /// A directory over one of the image: path, inode, inode in the image.
    Over(Vec<u8>, Ino, Ino),
    /// A new directory, everything in which is new: path, inode.
    New(Vec<u8>, Ino),
}

struct Walk<'a> {
    union: &'a Union,
    found: Found,
    /// An explicit stack: a tree may be thousands of directories deep.
    todo: Vec<Step>,
}

impl Union {
    /// Returns the differences from the image.
    pub fn changes(&self) -> Result<Found, FsError> {
        self.load_all()?;
        let found = Found { changes: Changes::new(), passed: HashMap::new() };
        let mut walk = Walk { union: self, found, todo: Vec::new() };
        walk.compare(b"/".to_vec(), Some(ROOT), Some(ROOT))?;
        while let Some(step) = walk.todo.pop() {
            let done = match &step {
                Step::Over(path, dir, base) => walk.over(path, *dir, *base),
                Step::New(path, dir) => walk.new_dir(path, *dir),
            };
            match done {
                // Removed by a mount that uses the directory at the same time.
                Err(e) if self.is_view() && e.is_absence() => {}
                done => done?,
            }
        }
        Ok(walk.found)
    }

    /// Returns all paths of an inode that is not a directory.
    pub fn paths_of(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        let mut names: BTreeSet<(Ino, Name)> =
            self.table().get(ino).map(|entry| entry.names.iter().cloned().collect()).unwrap_or_default();
        if self.lower.has(ino) {
            names.extend(self.visible_names(ino)?);
        }
        names.iter().map(|(dir, name)| Ok(join(&self.path_of_dir(*dir)?, name))).collect()
    }

    fn path_of_dir(&self, dir: Ino) -> Result<Vec<u8>, FsError> {
        let _still = self.renames.lock();
        let (mut at, mut parts) = (dir, Vec::new());
        while at != ROOT {
            let known = self.table().get(at).map(|entry| entry.names.first().cloned());
            let (parent, name) = match known {
                Some(place) => place.ok_or(FsError::Stale(at))?,
                None => (self.lower.parent(at)?, self.lower.dir_name(at)?),
            };
            parts.push(name);
            at = parent;
        }
        Ok(parts.iter().rev().fold(b"/".to_vec(), |path, name| join(&path, name)))
    }

    /// Whether an inode differs from the image's. Data that was written counts as different without a comparison.
    fn differs(&self, ino: Ino, old: Ino) -> Result<bool, FsError> {
        if ino != old {
            return Ok(true);
        }
        let is_copied_up = self.is_copied_up(ino);
        let written = is_copied_up && self.kind(ino)? == Kind::File && self.data_of(ino) == Some(Data::Upper);
        Ok(is_copied_up && (written || self.attributes_differ(ino, old)? != (false, false)))
    }

    /// Whether attributes other than the modification time differ, and whether the modification time does.
    fn attributes_differ(&self, ino: Ino, old: Ino) -> Result<(bool, bool), FsError> {
        if ino == old && !self.is_copied_up(ino) {
            return Ok((false, false));
        }
        let told = |a: &Attr| (a.kind, a.mode, a.uid, a.gid, a.rdev, a.size);
        let (new, before) = (self.getattr(ino)?, self.lower.getattr(old)?);
        let other = told(&new) != told(&before) || self.xattrs_of(ino)? != self.image_xattrs(old)?;
        Ok((other, new.mtime != before.mtime))
    }

    fn xattrs_of(&self, ino: Ino) -> Result<Xattrs, FsError> {
        let names = self.xattr_names(ino)?.into_iter().filter(|name| !is_label(name));
        names.map(|name| self.getxattr(ino, &name).map(|value| (name.clone(), value.into_owned()))).collect()
    }

    fn image_xattrs(&self, old: Ino) -> Result<Xattrs, FsError> {
        Ok(self.lower.xattrs(old)?.into_iter().filter(|(name, _)| !is_label(name)).collect())
    }
}

impl Walk<'_> {
    /// Compares what a path has now (`new`) with what the image has there (`old`).
    fn compare(&mut self, path: Vec<u8>, new: Option<Ino>, old: Option<Ino>) -> Result<(), FsError> {
        let union = self.union;
        let (new, old) = match (new, old) {
            (None, None) => return Ok(()),
            (None, Some(old)) => {
                self.found.changes.insert(path, Changed::new(How::Deleted, old, union.lower.kind(old)?));
                return Ok(());
            }
            (Some(new), None) => return self.add(path, new),
            (Some(new), Some(old)) => (new, old),
        };
        let kind = union.kind(new)?;
        let mut changed = Changed::new(How::Changed, new, kind);
        if kind == Kind::Dir && union.lower.kind(old)? == Kind::Dir {
            let (other, time) = union.attributes_differ(new, old)?;
            changed.by_time = time && !other;
            changed.replaces = !self.shows_through(new, old);
            if other || time || changed.replaces {
                self.found.changes.insert(path.clone(), changed);
            }
            self.todo.push(Step::Over(path, new, old));
            return Ok(());
        }
        if union.differs(new, old)? {
            self.found.changes.insert(path.clone(), changed);
            if kind == Kind::Dir {
                self.todo.push(Step::New(path, new));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: Vec<u8>, ino: Ino) -> Result<(), FsError> {
        let kind = self.union.kind(ino)?;
        let empty = kind == Kind::File && self.union.getattr(ino)?.size == 0;
        self.found.changes.insert(path.clone(), Changed { empty, ..Changed::new(How::Added, ino, kind) });
        if kind == Kind::Dir {
            self.todo.push(Step::New(path, ino));
        }
        Ok(())
    }

    /// Whether the image's directory shows through one of the union, apart from the names changed there.
    fn shows_through(&self, dir: Ino, base: Ino) -> bool {
        match self.union.table().get(dir) {
            Some(entry) => entry.dir.as_ref().is_some_and(|here| here.lower == Some(base)),
            None => dir == base,
        }
    }

    fn over(&mut self, path: &[u8], dir: Ino, base: Ino) -> Result<(), FsError> {
        let union = self.union;
        self.found.passed.insert(path.to_vec(), dir);
        if self.shows_through(dir, base) {
            let names: Vec<(Name, NameState)> = match union.table().names(dir) {
                Some(names) => names.all().map(|(name, what)| (name.clone(), what)).collect(),
                None => Vec::new(),
            };
            return names.into_iter().try_for_each(|(name, what)| {
                let new = match what {
                    NameState::Inode(ino) => Some(ino),
                    NameState::Whiteout => None,
                };
                self.compare_unless_gone(join(path, &name), new, union.lower.find(base, &name)?)
            });
        }
        for (name, ino) in self.names(dir)? {
            self.compare_unless_gone(join(path, &name), Some(ino), union.lower.find(base, &name)?)?;
        }
        let listing = union.lower.listing(base)?;
        for item in listing.from(0) {
            let (_, Item { name, ino, .. }) = item?;
            if union.find(dir, name)?.is_none() {
                self.compare(join(path, name), None, Some(ino))?;
            }
        }
        Ok(())
    }

    fn new_dir(&mut self, path: &[u8], dir: Ino) -> Result<(), FsError> {
        self.names(dir)?
            .into_iter()
            .try_for_each(|(name, ino)| self.compare_unless_gone(join(path, &name), Some(ino), None))
    }

    /// The same as [`Walk::compare`], but a name that has just been removed is skipped.
    fn compare_unless_gone(&mut self, path: Vec<u8>, new: Option<Ino>, old: Option<Ino>) -> Result<(), FsError> {
        match self.compare(path, new, old) {
            Err(e) if self.union.is_view() && e.is_absence() => Ok(()),
            done => done,
        }
    }

    fn names(&self, dir: Ino) -> Result<Vec<(Vec<u8>, Ino)>, FsError> {
        let mut names = Vec::new();
        self.union.each_name(dir, 0, |name, (ino, _), _| {
            names.push((name.to_vec(), ino));
            false
        })?;
        Ok(names)
    }
}

//! Where the image has an inode: the way back from a number to names.

use super::Union;
use crate::fs::image::Image;
use crate::fs::union::table::{Name, What};
use crate::fs::{FsError, Ino, ROOT};
use std::collections::HashMap;
use std::sync::Arc;

/// The directories in which the image has its files. Made when first needed, by one pass over its entries.
pub struct Origins {
    /// By inode; 0 for directories, which know their own, and where there is none.
    first: Vec<u32>,
    /// Further ones, of hard links.
    more: HashMap<u32, Vec<u32>>,
}

impl Origins {
    fn of(image: &Image) -> Result<Origins, FsError> {
        let nodes = image.tree.nodes();
        let mut origins = Origins { first: vec![0; nodes.len()], more: HashMap::new() };
        for (dir, node) in nodes.iter().enumerate().filter(|(_, node)| node.is_dir()) {
            let dir = dir as u32 + 1;
            for entry in image.tree.children(node)? {
                let child = entry.node.get();
                match origins.first.get_mut(child as usize) {
                    Some(first @ 0) => *first = dir,
                    _ => {
                        let further = origins.more.entry(child).or_default();
                        if further.last() != Some(&dir) {
                            further.push(dir);
                        }
                    }
                }
            }
        }
        Ok(origins)
    }

    fn dirs(&self, ino: Ino) -> impl Iterator<Item = Ino> {
        let id = (ino - 1) as u32;
        let first = self.first.get(id as usize).copied().filter(|dir| *dir != 0);
        let more = self.more.get(&id).map_or(&[][..], Vec::as_slice);
        let mut dirs: Vec<Ino> = first.iter().chain(more).map(|dir| Ino::from(*dir)).collect();
        dirs.dedup();
        dirs.sort_unstable();
        dirs.dedup();
        dirs.into_iter()
    }
}

impl Union {
    fn origins(&self) -> Result<&Origins, FsError> {
        if let Some(origins) = self.origins.get() {
            return Ok(origins);
        }
        let made = Origins::of(&self.image)?;
        Ok(self.origins.get_or_init(|| made))
    }

    /// The names that the image has for an inode in one of its directories.
    fn names_in(&self, dir: Ino, ino: Ino) -> Result<Vec<Name>, FsError> {
        let id = (ino - 1) as u32;
        let mut names = Vec::new();
        for entry in self.image.children(dir)?.iter().filter(|entry| entry.node.get() == id) {
            names.push(Arc::from(self.image.tree.name(entry)?));
        }
        Ok(names)
    }

    /// The names under which an inode of the image, which the upper directory does not have yet, shows through.
    pub(super) fn visible_names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        let (names, all) = self.names_now(ino)?;
        if all || self.all_loaded.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(names);
        }
        // A directory may have been moved to where nobody has looked yet.
        self.load_all()?;
        Ok(self.names_now(ino)?.0)
    }

    /// The visible names, and whether they are all that the image has.
    fn names_now(&self, ino: Ino) -> Result<(Vec<(Ino, Name)>, bool), FsError> {
        let (mut visible, mut all) = (Vec::new(), true);
        for dir in self.origins()?.dirs(ino) {
            let shows = self.shows(dir)?;
            for name in self.names_in(dir, ino)? {
                if shows && self.slot(dir, &name)?.is_none() {
                    visible.push((dir, name));
                } else {
                    all = false;
                }
            }
        }
        Ok((visible, all))
    }

    /// Whether a directory of the image is seen, wherever it is now, with what the image has in it.
    fn shows(&self, dir: Ino) -> Result<bool, FsError> {
        if let Some(entry) = self.table().get(dir) {
            return Ok(!entry.is_removed() && entry.dir.as_ref().is_some_and(|d| d.lower == Some(dir)));
        }
        if dir == ROOT {
            return Ok(true);
        }
        let parent = self.image.parent(dir)?;
        if !self.shows(parent)? {
            return Ok(false);
        }
        for name in self.names_in(parent, dir)? {
            match self.slot(parent, &name)? {
                None => return Ok(true),
                Some(What::Inode(found)) if found == dir => return Ok(true),
                Some(_) => {}
            }
        }
        Ok(false)
    }

    /// What a directory's part of the upper has under a name.
    fn slot(&self, dir: Ino, name: &[u8]) -> Result<Option<What>, FsError> {
        self.ensure_loaded(dir)?;
        Ok(self.table().names(dir).and_then(|names| names.get(name)))
    }

    /// Where the image has an inode, as a path from the root.
    pub(super) fn image_path(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let is_dir = self.image.node(ino)?.is_dir();
        let mut parts: Vec<Name> = Vec::new();
        let mut at = ino;
        if !is_dir {
            let dir = self.origins()?.dirs(ino).next().ok_or(FsError::Stale(ino))?;
            parts.extend(self.names_in(dir, ino)?.into_iter().next());
            at = dir;
        }
        while at != ROOT {
            let parent = self.image.parent(at)?;
            parts.extend(self.names_in(parent, at)?.into_iter().next());
            at = parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Ok(path)
    }

    /// What the image has at a path from its root.
    pub(super) fn at_image_path(&self, path: &[u8]) -> Result<Option<Ino>, FsError> {
        let mut at = ROOT;
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            match self.image.find(at, part) {
                Ok(Some(next)) => at = next,
                Ok(None) | Err(FsError::NotDir) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(at))
    }
}

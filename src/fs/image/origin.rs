//! Reverse lookup in an image: from an inode number to its names.

use super::Image;
use crate::fs::lower_types::Name;
use crate::fs::{FsError, Ino, ROOT};
use std::collections::HashMap;
use std::sync::Arc;

/// The parent directories of the image's files. Built at first use, by one pass over all entries.
pub struct Origins {
    /// The first parent by inode; 0 for directories, whose parent is in the index, and for none.
    first: Vec<u32>,
    /// The other parents of inodes with several hard links.
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

impl Image {
    fn origins(&self) -> Result<&Origins, FsError> {
        if let Some(origins) = self.origins.get() {
            return Ok(origins);
        }
        let made = Origins::of(self)?;
        Ok(self.origins.get_or_init(|| made))
    }

    /// Returns all names of an inode, each with its directory. The root has none.
    pub fn names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        let node = self.node(ino)?;
        let dirs = match node.is_dir() {
            _ if ino == ROOT => Vec::new(),
            true => vec![self.parent(ino)?],
            false => self.origins()?.dirs(ino).collect(),
        };
        let mut names = Vec::new();
        for dir in dirs {
            for entry in self.children(dir)?.iter().filter(|entry| super::number(entry.node.get()) == ino) {
                names.push((dir, Arc::from(self.tree.name(entry)?)));
            }
        }
        Ok(names)
    }
}

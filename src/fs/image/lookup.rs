//! Lookup in an image: names, entries, parents, link targets.

use super::{Image, number};
use crate::fs::{FsError, Ino};
use crate::layer::Dirent;
use crate::meta::Kind;

impl Image {
    /// Finds `name` in the directory `parent`.
    pub fn find(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        Ok(self.tree.find(self.dir(parent)?, name)?.map(|entry| number(entry.node.get())))
    }

    /// Returns a directory's entries, sorted by name.
    pub fn children(&self, dir: Ino) -> Result<&[Dirent], FsError> {
        Ok(self.tree.children(self.dir(dir)?)?)
    }

    /// Returns the parent of the directory `ino`; the root is its own parent.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        Ok(number(self.dir(ino)?.parent.get()))
    }

    /// Returns a symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<&[u8], FsError> {
        let node = self.node(ino)?;
        if node.kind() == Some(Kind::Symlink) { Ok(self.tree.target(node)?) } else { Err(FsError::WrongType) }
    }
}

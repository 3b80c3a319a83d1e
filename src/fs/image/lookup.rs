//! Names to inodes of an image.

use super::{Image, number};
use crate::fs::{FsError, Ino};
use crate::layer::Dirent;
use crate::meta::Kind;

impl Image {
    /// The inode that `name` is in the directory `parent`.
    pub fn find(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        Ok(self.tree.find(self.dir(parent)?, name)?.map(|entry| number(entry.node.get())))
    }

    /// A directory's entries, sorted by name.
    pub fn children(&self, dir: Ino) -> Result<&[Dirent], FsError> {
        Ok(self.tree.children(self.dir(dir)?)?)
    }

    /// The directory that holds the directory `ino`; the root holds itself.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        Ok(number(self.dir(ino)?.parent.get()))
    }

    /// A symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<&[u8], FsError> {
        let node = self.node(ino)?;
        if node.kind() == Some(Kind::Symlink) { Ok(self.tree.target(node)?) } else { Err(FsError::WrongType) }
    }
}

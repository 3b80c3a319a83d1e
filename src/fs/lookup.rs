//! Names to inodes.

use super::{Attr, Fs, FsError, Ino, number};
use crate::meta::Kind;
use crate::name::NAME_MAX;

impl Fs {
    /// The inode that `name` is in the directory `parent`. `..` is not a name here; the kernel asks [`Fs::parent`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        let dir = self.dir(parent)?;
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        match self.tree.find(dir, name)? {
            Some(entry) => {
                let id = entry.node.get();
                self.attr_of(number(id), self.tree.node(id)?)
            }
            None => Err(FsError::NotFound),
        }
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

//! Extended attributes of plain directories.

use super::{Dirs, Node};
use crate::backing::{Backing, Still};
use crate::fs::{FsError, Ino};
use crate::layer;
use std::ffi::CString;
use std::os::fd::AsFd;

impl Dirs {
    /// The value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let stored = self.names_of(ino)?.into_iter().find(|found| found.shown == name);
        let stored = stored.map(|found| found.stored).ok_or(FsError::NoAttribute)?;
        let value = match self.node(ino)? {
            Node::Dir(dir) => Still.get_xattr(self.handle(&dir.candidates[0])?.as_fd(), &stored)?,
            Node::Leaf(leaf) => {
                let dir = self.handle(&leaf.place.source)?;
                let stored = CString::new(stored).map_err(|_| FsError::NoAttribute)?;
                Still.get_xattr_at(dir.as_fd(), &leaf.place.name, &stored)?
            }
        };
        value.ok_or(FsError::NoAttribute)
    }

    /// The names of an inode's extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        Ok(self.names_of(ino)?.into_iter().map(|found| found.shown).collect())
    }

    /// The names that an inode's extended attributes have there, and those under which they are seen. Most inodes have
    /// none, which one call tells.
    fn names_of(&self, ino: Ino) -> Result<Vec<layer::StoredName>, FsError> {
        let stored = match self.node(ino)? {
            Node::Dir(dir) => Still.list_xattrs(self.handle(&dir.candidates[0])?.as_fd())?,
            Node::Leaf(leaf) => Still.list_xattrs_at(self.handle(&leaf.place.source)?.as_fd(), &leaf.place.name)?,
        };
        Ok(layer::shown_names(&stored))
    }
}

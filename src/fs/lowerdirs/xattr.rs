//! Extended attributes of inodes in lower directories.

use super::{LowerDirs, Node};
use crate::backing::{Backing, ReadOnly};
use crate::fs::lower_types::Attributes;
use crate::fs::{FsError, Ino};
use crate::layer::{self, StoredName};
use std::ffi::CString;
use std::os::fd::AsFd;

impl LowerDirs {
    /// Returns the value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let node = self.node(ino)?;
        let found = self.names_of(&node)?.into_iter().find(|found| found.shown == name);
        self.value(&node, &found.ok_or(FsError::NoAttribute)?)
    }

    /// Returns the names of an inode's extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        Ok(self.names_of(&self.node(ino)?)?.into_iter().map(|found| found.shown).collect())
    }

    /// Returns all extended attributes of an inode.
    pub fn xattrs(&self, ino: Ino) -> Result<Attributes, FsError> {
        let node = self.node(ino)?;
        let names = self.names_of(&node)?.into_iter();
        names.map(|found| self.value(&node, &found).map(|value| (found.shown, value))).collect()
    }

    fn value(&self, node: &Node, name: &StoredName) -> Result<Vec<u8>, FsError> {
        let value = match node {
            Node::Dir(dir) => ReadOnly.get_xattr(self.handle(&dir.candidates[0])?.as_fd(), &name.stored)?,
            Node::Leaf(leaf) => {
                let dir = self.handle(&leaf.place.source)?;
                let stored = CString::new(&*name.stored).map_err(|_| FsError::NoAttribute)?;
                ReadOnly.get_xattr_at(dir.as_fd(), &leaf.place.name, &stored)?
            }
        };
        value.ok_or(FsError::NoAttribute)
    }

    /// Returns the names of an inode's extended attributes, as stored and as shown. Most inodes have none, which one
    /// call tells.
    fn names_of(&self, node: &Node) -> Result<Vec<StoredName>, FsError> {
        let stored = match node {
            Node::Dir(dir) => ReadOnly.list_xattrs(self.handle(&dir.candidates[0])?.as_fd())?,
            Node::Leaf(leaf) => ReadOnly.list_xattrs_at(self.handle(&leaf.place.source)?.as_fd(), &leaf.place.name)?,
        };
        Ok(layer::shown_names(&stored))
    }
}

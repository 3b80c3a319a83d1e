//! Extended attributes of an image's inodes.

use super::Image;
use crate::fs::{FsError, Ino};

/// An extended attribute: name and value.
pub type Attribute<'a> = (&'a [u8], &'a [u8]);

impl Image {
    /// Returns the value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<&[u8], FsError> {
        for item in self.tree.xattrs(self.node(ino)?)? {
            let (found, value) = item?;
            if found == name {
                return Ok(value);
            }
        }
        Err(FsError::NoAttribute)
    }

    /// Returns all extended attributes of an inode.
    pub fn xattrs(&self, ino: Ino) -> Result<Vec<Attribute<'_>>, FsError> {
        Ok(self.tree.xattrs(self.node(ino)?)?.collect::<Result<_, _>>()?)
    }
}

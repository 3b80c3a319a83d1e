//! Extended attributes.

use super::{Fs, FsError, Ino};

impl Fs {
    /// The value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<&[u8], FsError> {
        for item in self.tree.xattrs(self.node(ino)?)? {
            let (found, value) = item?;
            if found == name {
                return Ok(value);
            }
        }
        Err(FsError::NoAttribute)
    }

    /// The names of an inode's extended attributes, each followed by a NUL. `trusted.` ones are listed for a
    /// `privileged` caller only (xattr(7)).
    pub fn listxattr(&self, ino: Ino, privileged: bool) -> Result<Vec<u8>, FsError> {
        let mut names = Vec::new();
        for item in self.tree.xattrs(self.node(ino)?)? {
            let (name, _) = item?;
            if privileged || !name.starts_with(b"trusted.") {
                names.extend_from_slice(name);
                names.push(0);
            }
        }
        Ok(names)
    }
}

//! The file system: inodes and the operations on them, without a kernel.
//!
//! Every operation takes inode numbers and gives plain data or an [`FsError`]; `fuse` only converts. An inode number is
//! one more than the inode's place in the image's index, which is the same at every mount of the image, so numbers are
//! stable across remounts and the root is 1, as FUSE wants it. All methods take `&self` and lock nothing: an image
//! never changes.

mod attr;
mod error;
mod lookup;
mod read;
mod readdir;
mod xattr;

pub use attr::{Attr, BLOCK_SIZE, Statfs};
pub use error::FsError;
pub use readdir::DirEntry;

use crate::layer::{Index, Node};
use crate::sys::Bytes;
use std::fs::File;

/// An inode number, as `stat` shows it.
pub type Ino = u64;

/// The root directory's inode number.
pub const ROOT: Ino = 1;

/// One layer's tar: mapped for replies that lie in one piece, and as a file for those that do not.
pub struct Data {
    file: File,
    bytes: Bytes,
}

impl Data {
    /// Maps a layer's tar; the file must be one of the store's ([`crate::sys::map`]).
    pub fn open(file: File) -> std::io::Result<Data> {
        let bytes = crate::sys::map(&file)?;
        Ok(Data { file, bytes })
    }
}

/// A mounted image, read-only.
pub struct Fs {
    tree: Index,
    layers: Vec<Data>,
}

impl Fs {
    /// Serves `tree`, the merge of the layers whose tars are `layers`, the bottom one first.
    pub fn new(tree: Index, layers: Vec<Data>) -> Fs {
        Fs { tree, layers }
    }

    /// Whether any inode has a POSIX ACL, so that the kernel must be asked to heed them.
    pub fn has_acls(&self) -> bool {
        self.tree.flags() & crate::layer::index_flags::ACLS != 0
    }

    fn node(&self, ino: Ino) -> Result<&Node, FsError> {
        let id = u32::try_from(ino.wrapping_sub(1)).map_err(|_| FsError::Stale(ino))?;
        self.tree.nodes().get(id as usize).ok_or(FsError::Stale(ino))
    }

    fn dir(&self, ino: Ino) -> Result<&Node, FsError> {
        let node = self.node(ino)?;
        if node.is_dir() { Ok(node) } else { Err(FsError::NotDir) }
    }
}

fn number(id: u32) -> Ino {
    u64::from(id) + 1
}

//! What the writer is given besides the merged index: the layers' tars; and its errors.

use crate::digest::Digest;
use crate::layer::{Index, IndexError};
use crate::name::show;
use std::io;

/// A layer's tar: its length, and access to the few blocks that must be copied.
pub trait Tar {
    /// The length in bytes.
    fn length(&self) -> u64;
    /// Reads all of `into` at `offset`.
    fn read_exact(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

/// One layer of an image.
pub struct Layer<'a> {
    /// Digest of the tar.
    pub diff_id: &'a Digest,
    /// The tar.
    pub tar: &'a dyn Tar,
}

/// Why an EROFS image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The merged index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A tar cannot be read.
    #[error("cannot read the tar of layer {}: {why}", .diff_id.short())]
    Read {
        /// The layer.
        diff_id: Digest,
        /// The error.
        why: io::Error,
    },
    /// Block numbers have 32 bits.
    #[error("EROFS cannot hold an image or a layer of more than 2 TiB")]
    TooLarge,
    /// Device numbers have 16 bits, and so has the number of the root, which follows the device table.
    #[error("EROFS cannot hold an image of {0} layers")]
    Layers(usize),
    /// An attribute of 64 KiB, or attributes of more than 256 KiB.
    #[error("EROFS cannot hold the extended attributes of `{}`", show(.0))]
    Xattrs(Vec<u8>),
    /// The description of a sparse file would be too long.
    #[error("EROFS cannot hold the sparse file `{}`: the description of its holes would be too long", show(.0))]
    Sparse(Vec<u8>),
}

/// Returns a path of an inode, for an error message.
pub(super) fn path_of(tree: &Index, id: u32) -> Vec<u8> {
    let (mut path, mut wanted) = (Vec::new(), id);
    // An index is numbered breadth first, so a directory's number is greater than its parent's.
    for dir in (0..tree.nodes().len() as u32).rev() {
        let Ok(children) = tree.node(dir).and_then(|node| tree.children(node)) else { continue };
        if wanted != 0
            && let Some(entry) = children.iter().find(|entry| entry.node.get() == wanted)
        {
            path.splice(0..0, [b"/", tree.name(entry).unwrap_or_default()].concat());
            wanted = dir;
        }
    }
    path
}

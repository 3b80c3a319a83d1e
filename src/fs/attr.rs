//! What `stat` and `statfs` tell.

use super::{Fs, FsError, Ino};
use crate::layer::{IndexError, Node};
use crate::meta::{Kind, PERMISSION_BITS, Time};

/// An inode's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Kind of file.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// Link count; of a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks that hold data.
    pub blocks: u64,
    /// Modification time; a tar has no other, so access and change time are the same.
    pub mtime: Time,
}

/// What `statfs` tells of an image: everything is used, nothing is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Blocks of [`BLOCK_SIZE`] bytes.
    pub blocks: u64,
    /// Inodes.
    pub files: u64,
}

/// The block size that files and the file system report.
pub const BLOCK_SIZE: u32 = 4096;

impl Fs {
    /// An inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        self.attr_of(ino, self.node(ino)?)
    }

    /// The size of the image.
    pub fn statfs(&self) -> Statfs {
        Statfs { blocks: self.tree.blocks(), files: self.tree.nodes().len() as u64 }
    }

    pub(super) fn attr_of(&self, ino: Ino, node: &Node) -> Result<Attr, FsError> {
        let kind = node.kind().ok_or(IndexError::Damaged("an inode has no kind"))?;
        Ok(Attr {
            ino,
            kind,
            mode: (node.mode.get() & PERMISSION_BITS) as u16,
            nlink: node.nlink.get(),
            uid: node.uid.get(),
            gid: node.gid.get(),
            rdev: if matches!(kind, Kind::Char | Kind::Block) { node.data.get() as u32 } else { 0 },
            // Local file systems give a directory at least one block, and programs take size 0 for a special one.
            size: if kind == Kind::Dir { BLOCK_SIZE.into() } else { node.size.get() },
            blocks: if kind == Kind::Dir { 8 } else { u64::from(node.blocks.get()) * 8 },
            mtime: node.mtime(),
        })
    }
}

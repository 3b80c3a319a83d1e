//! An image as a read-only file system: the merged index and the layers' tars. It never changes, so nothing here locks.
//!
//! An inode's number is its position in the image's index plus one, so it is the same at every mount.

mod lookup;
mod origin;
mod read;
mod xattr;

use super::attr::{Attr, BLOCK_SIZE, Statfs};
use super::{FsError, Ino};
use crate::backing::{Handle, share};
use crate::layer::{Index, IndexError, Node, index_flags};
use crate::meta::{Kind, PERMISSION_BITS};
use crate::sys::Bytes;
use origin::Origins;
use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// One layer's tar: as a mapping, for contiguous replies, and as a file, for the others.
pub struct Data {
    file: Handle,
    bytes: Bytes,
}

impl Data {
    /// Maps a layer's tar; the file must be one of the store's ([`crate::sys::map`]).
    pub fn open(file: File) -> std::io::Result<Data> {
        let bytes = crate::sys::map(&file)?;
        Ok(Data { file: share(file.into()), bytes })
    }
}

/// The image: its index and the layers' data.
pub(super) struct Image {
    pub tree: Index,
    layers: Vec<Data>,
    origins: OnceLock<Origins>,
    /// Kernel reference counts, allocated only where they are needed.
    references: OnceLock<Box<[AtomicU64]>>,
}

impl Image {
    pub fn new(tree: Index, layers: Vec<Data>) -> Image {
        Image { tree, layers, origins: OnceLock::new(), references: OnceLock::new() }
    }

    /// Whether the inode number belongs to the image.
    pub fn has(&self, ino: Ino) -> bool {
        ino >= 1 && ino <= self.tree.nodes().len() as u64
    }

    pub fn node(&self, ino: Ino) -> Result<&Node, FsError> {
        let id = u32::try_from(ino.wrapping_sub(1)).map_err(|_| FsError::Stale(ino))?;
        self.tree.nodes().get(id as usize).ok_or(FsError::Stale(ino))
    }

    pub fn dir(&self, ino: Ino) -> Result<&Node, FsError> {
        let node = self.node(ino)?;
        if node.is_dir() { Ok(node) } else { Err(FsError::NotDir) }
    }

    /// Returns an inode's kind.
    pub fn kind(&self, ino: Ino) -> Result<Kind, FsError> {
        Ok(self.node(ino)?.kind().ok_or(IndexError::Damaged("an inode has no file type"))?)
    }

    /// Returns an inode's kernel reference count.
    pub fn references(&self, ino: Ino) -> Option<&AtomicU64> {
        let all = self.references.get_or_init(|| self.tree.nodes().iter().map(|_| AtomicU64::new(0)).collect());
        all.get(ino.wrapping_sub(1) as usize)
    }

    /// Whether any inode has a POSIX ACL.
    pub fn has_acls(&self) -> bool {
        self.tree.flags() & index_flags::ACLS != 0
    }

    /// Returns the size of the image: everything is used and nothing is free.
    pub fn statfs(&self) -> Statfs {
        let (blocks, files) = (self.tree.blocks(), self.tree.nodes().len() as u64);
        Statfs { block: BLOCK_SIZE, blocks, free: 0, available: 0, files, files_free: 0 }
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        self.attr_of(ino, self.node(ino)?)
    }

    fn attr_of(&self, ino: Ino, node: &Node) -> Result<Attr, FsError> {
        let kind = node.kind().ok_or(IndexError::Damaged("an inode has no file type"))?;
        Ok(Attr {
            ino,
            kind,
            mode: (node.mode.get() & PERMISSION_BITS) as u16,
            nlink: node.nlink.get(),
            uid: node.uid.get(),
            gid: node.gid.get(),
            rdev: if matches!(kind, Kind::Char | Kind::Block) { node.data.get() as u32 } else { 0 },
            // Local file systems give a directory at least one block, and programs treat size 0 as special.
            size: if kind == Kind::Dir { BLOCK_SIZE.into() } else { node.size.get() },
            blocks: if kind == Kind::Dir { 8 } else { u64::from(node.blocks.get()) * 8 },
            // The index records no other time.
            atime: node.mtime(),
            mtime: node.mtime(),
            ctime: node.mtime(),
        })
    }
}

pub(super) fn number(id: u32) -> Ino {
    u64::from(id) + 1
}

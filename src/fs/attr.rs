//! What `stat` and `statfs` tell, and what `setattr` is told.

use super::Ino;
use crate::backing::{Object, Space};
use crate::meta::{Kind, Time};

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
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
}

impl Attr {
    /// Those of an object on disk. Directories have the size of one block, and what has no data has none.
    pub(super) fn of(ino: Ino, object: &Object, nlink: u32) -> Attr {
        let (size, blocks) = match object.kind {
            Kind::Dir => (BLOCK_SIZE.into(), 8),
            Kind::File | Kind::Symlink => (object.raw.size, object.raw.blocks),
            _ => (0, 0),
        };
        Attr {
            ino,
            kind: object.kind,
            mode: object.mode as u16,
            nlink,
            uid: object.uid,
            gid: object.gid,
            rdev: object.rdev,
            size,
            blocks,
            atime: object.raw.atime,
            mtime: object.raw.mtime,
            ctime: object.raw.ctime,
        }
    }
}

/// The block size that files and the file system report.
pub const BLOCK_SIZE: u32 = 4096;

/// What `statfs` tells, in units of `block` bytes. Of an image alone everything is used and nothing is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Bytes of a block.
    pub block: u32,
    /// Blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Those free for anybody.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub files_free: u64,
}

impl From<Space> for Statfs {
    fn from(space: Space) -> Statfs {
        Statfs {
            block: space.block.try_into().unwrap_or(BLOCK_SIZE),
            blocks: space.blocks,
            free: space.free,
            available: space.available,
            files: space.files,
            files_free: space.files_free,
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// This one.
    To(Time),
    /// The present.
    Now,
}

/// What `setattr` changes: what is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// The change time that the kernel has for a file that it caches. No file system can be made to take it; it is for the
    /// answer.
    pub ctime: Option<Time>,
}

/// What is to be made under a new name.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// Kind.
    pub kind: Kind,
    /// Permission, set-id and sticky bits, before `umask`.
    pub mode: u32,
    /// Bits that are taken out of the mode, unless the directory has a default ACL.
    pub umask: u32,
    /// Device number of a device, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Owner.
    pub uid: u32,
    /// Group; a directory with the set-group-ID bit hands down its own instead.
    pub gid: u32,
    /// A symbolic link's target.
    pub target: &'a [u8],
}

/// What a rename does with the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// What has it goes.
    Allow,
    /// Nothing may have it (RENAME_NOREPLACE).
    Forbid,
    /// What has it gets the old name (RENAME_EXCHANGE).
    Exchange,
}

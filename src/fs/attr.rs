//! Inode attributes (stat, setattr), file system statistics (statfs), and the arguments of create and rename.

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
    /// Link count; of a directory, 2 plus the number of its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Size in bytes.
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
    /// Builds the attributes of an object on disk. Directories have the size of one block, and inodes without data use
    /// no blocks.
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

/// File system statistics (statfs), in units of `block` bytes. An image alone is full: no free blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Block size in bytes.
    pub block: u32,
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for unprivileged users.
    pub available: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
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

/// A timestamp to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The given time.
    To(Time),
    /// The current time.
    Now,
}

/// The attributes that `setattr` changes: those that are `Some`.
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
    /// The change time that the kernel has cached for a file. No file system call can set it; it is used for the reply
    /// only.
    pub ctime: Option<Time>,
}

/// The attributes of an object to be created.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// Kind of file.
    pub kind: Kind,
    /// Permission, set-id and sticky bits, before `umask`.
    pub mode: u32,
    /// Bits that are cleared in the mode, unless the directory has a default ACL.
    pub umask: u32,
    /// Device number of a device, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Owner.
    pub uid: u32,
    /// Group; in a directory with the set-group-ID bit, the directory's group is used instead.
    pub gid: u32,
    /// A symbolic link's target.
    pub target: &'a [u8],
}

/// How a rename treats an existing new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// It is replaced.
    Allow,
    /// It must not exist (RENAME_NOREPLACE).
    Forbid,
    /// The two names are exchanged (RENAME_EXCHANGE).
    Exchange,
}

//! The backing file system: the system calls on layers and upper directories, as a narrow trait that tests can
//! implement to count calls, inject errors and drop unsynced data. It makes no decisions: the meaning of names and
//! attributes is in [`crate::whiteout`], except for the attribute that holds owner and mode ([`Object`]).

pub mod acl;
mod disk;
mod fd_cache;
mod owner;
mod readonly;

pub use disk::{Disk, read_exact};
pub use fd_cache::{Handle, Handles, share};
pub use owner::{Object, print};
pub use readonly::ReadOnly;

use crate::meta::{Kind, Time};
use crate::sys;
use rustix::fs::{OFlags, RenameFlags, Timestamps, XattrFlags};
use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Attributes of an object on the backing file system, as stat(2) returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Device number (`st_dev`) of the file system.
    pub dev: u64,
    /// Inode number on that file system.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Link count on that file system.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
}

/// A directory entry as listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name, never `.` or `..`.
    pub name: Vec<u8>,
    /// The listed inode number.
    pub ino: u64,
    /// The listed kind (`d_type`), if the file system fills it in.
    pub kind: Option<Kind>,
}

/// Size and free space of the backing file system (statfs), in units of `block` bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Block size in bytes.
    pub block: u64,
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

/// System calls on the backing file system. `O_PATH` descriptors are accepted wherever the object and not its data is
/// meant. All errors are the kernel's own.
#[allow(missing_docs, reason = "each is the system call of its name, on the object that the descriptor stands for")]
pub trait Backing: Send + Sync {
    fn open(&self, dir: BorrowedFd, name: &[u8], flags: OFlags, mode: u32) -> io::Result<OwnedFd>;
    fn stat(&self, fd: BorrowedFd) -> io::Result<Raw>;
    fn stat_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Raw>;
    fn list(&self, dir: BorrowedFd) -> io::Result<Vec<Listed>>;
    fn mkdir(&self, dir: BorrowedFd, name: &[u8], mode: u32) -> io::Result<()>;
    fn mknod(&self, dir: BorrowedFd, name: &[u8], mode: u32, rdev: u32) -> io::Result<()>;
    fn symlink(&self, target: &[u8], dir: BorrowedFd, name: &[u8]) -> io::Result<()>;
    fn readlink(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Vec<u8>>;
    fn link(&self, fd: BorrowedFd, dir: BorrowedFd, name: &[u8]) -> io::Result<()>;
    fn unlink(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<()>;
    fn rmdir(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<()>;
    fn rename(&self, from: BorrowedFd, name: &[u8], to: BorrowedFd, new: &[u8], flags: RenameFlags) -> io::Result<()>;
    fn chmod(&self, fd: BorrowedFd, mode: u32) -> io::Result<()>;
    fn chown(&self, fd: BorrowedFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    fn utimens(&self, fd: BorrowedFd, times: &Timestamps) -> io::Result<()>;
    fn get_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<Option<Vec<u8>>>;
    fn get_xattr_at(&self, dir: BorrowedFd, entry: &[u8], name: &CStr) -> io::Result<Option<Vec<u8>>>;
    fn set_xattr(&self, fd: BorrowedFd, name: &[u8], value: &[u8], flags: XattrFlags) -> io::Result<()>;
    fn remove_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<()>;
    fn list_xattrs(&self, fd: BorrowedFd) -> io::Result<Vec<u8>>;
    fn list_xattrs_at(&self, dir: BorrowedFd, entry: &[u8]) -> io::Result<Vec<u8>>;
    fn read(&self, fd: BorrowedFd, into: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write(&self, fd: BorrowedFd, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn copy(&self, from: BorrowedFd, at: u64, to: BorrowedFd, to_at: u64, len: usize) -> io::Result<usize>;
    fn truncate(&self, fd: BorrowedFd, size: u64) -> io::Result<()>;
    fn allocate(&self, fd: BorrowedFd, mode: u32, offset: u64, len: u64) -> io::Result<()>;
    fn seek(&self, fd: BorrowedFd, offset: u64, hole: bool) -> io::Result<u64>;
    fn sync(&self, fd: BorrowedFd, data_only: bool) -> io::Result<()>;
    fn lock(&self, fd: BorrowedFd) -> io::Result<()>;
    fn space(&self, fd: BorrowedFd) -> io::Result<Space>;
    fn get_flags(&self, fd: BorrowedFd) -> io::Result<u32>;
    fn set_flags(&self, fd: BorrowedFd, flags: u32) -> io::Result<()>;
    fn get_attributes(&self, fd: BorrowedFd) -> io::Result<[u8; 28]>;
    fn set_attributes(&self, fd: BorrowedFd, attributes: &[u8; 28]) -> io::Result<()>;

    /// Returns a hash of the file handle of a directory's entry, or with an empty name of the descriptor itself, which
    /// distinguishes inodes that have the same number at different times. An error where the file system has no file
    /// handles.
    fn generation(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<u32> {
        // FNV-1a: it must be the same in every release.
        let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        Ok(sys::file_handle(&dir, name)?.into_iter().fold(0x811c_9dc5, mix))
    }

    /// The same as `stat`, but the modification and change times are not queried: the access time stands for them,
    /// which it equals in a new object. After a query, a file system with multigrain timestamps (ext4, xfs, btrfs,
    /// tmpfs) gives the next change a timestamp finer than the clock tick, which differs from the time that the kernel
    /// keeps for the same change of a cached file.
    fn stat_without_times(&self, fd: BorrowedFd) -> io::Result<Raw> {
        self.stat(fd)
    }

    /// Reads up to `most` bytes at `offset`; fewer only at the end of the file.
    fn read_most(&self, fd: BorrowedFd, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut done) = (vec![0; most], 0);
        while done < most {
            match self.read(fd, &mut bytes[done..], offset + done as u64)? {
                0 => break,
                more => done += more,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }
}

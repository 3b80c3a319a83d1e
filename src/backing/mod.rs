//! The system calls that directories of layers and changes are read and kept with, as a trait so narrow that a test can
//! count them, fail any of them and forget what was not synced. It decides nothing: what a name or an attribute means is
//! known to [`crate::whiteout`], but for owner and mode, which an object may carry in an attribute ([`Object`]).

pub mod acl;
mod disk;
mod handles;
mod owner;
mod still;

pub use disk::{Disk, read_exact};
pub use handles::{Handle, Handles, share};
pub use owner::{Object, print};
pub use still::Still;

use crate::meta::{Kind, Time};
use crate::sys;
use rustix::fs::{OFlags, RenameFlags, Timestamps, XattrFlags};
use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Attributes of an object as the file system below has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Device number (`st_dev`) of the file system.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Links there.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Bytes.
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

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name, never `.` or `..`.
    pub name: Vec<u8>,
    /// The inode number there.
    pub ino: u64,
    /// What the directory says that it is, if it does.
    pub kind: Option<Kind>,
}

/// Space of the file system below, in units of `block` bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Bytes of a block.
    pub block: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Those free for anybody.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free ones.
    pub files_free: u64,
}

/// The calls. Descriptors may be `O_PATH` ones wherever the object and not its data is meant. All errors are the
/// system's own.
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

    /// A number that tells the inode of a directory's entry, or with an empty name of the descriptor itself, from those
    /// that have its inode number at other times. An error where the file system has no such thing.
    fn generation(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<u32> {
        // FNV-1a: it must be the same in every release.
        let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        Ok(sys::file_handle(&dir, name)?.into_iter().fold(0x811c_9dc5, mix))
    }

    /// As `stat`, but the file system is not asked for the times of modification and change: the access time stands for
    /// them, which it equals in an object that has just been made. A file system with multigrain timestamps (ext4, xfs,
    /// btrfs, tmpfs) gives what changes after such a question a time finer than the clock's tick, which differs from the
    /// time of the same change that the kernel keeps for a cached file.
    fn stat_without_times(&self, fd: BorrowedFd) -> io::Result<Raw> {
        self.stat(fd)
    }

    /// Up to `most` bytes from `offset` on, fewer only at the file's end.
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

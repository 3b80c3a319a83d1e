//! Read-only backing: system calls on lower directories, with O_NOATIME where permitted (not possible for symbolic
//! links); every write fails with EROFS.

use super::{Backing, Disk, Listed, Raw, Space, disk};
use rustix::fs::{OFlags, RenameFlags, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The backing file system without write access.
pub struct ReadOnly;

fn refused<T>() -> io::Result<T> {
    Err(Errno::ROFS.into())
}

impl Backing for ReadOnly {
    fn open(&self, dir: BorrowedFd, name: &[u8], flags: OFlags, _mode: u32) -> io::Result<OwnedFd> {
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC) {
            return refused();
        }
        Disk.open(dir, name, flags, 0)
    }

    fn stat(&self, fd: BorrowedFd) -> io::Result<Raw> {
        Disk.stat(fd)
    }

    fn stat_without_times(&self, fd: BorrowedFd) -> io::Result<Raw> {
        Disk.stat_without_times(fd)
    }

    fn stat_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Raw> {
        Disk.stat_at(dir, name)
    }

    fn list(&self, dir: BorrowedFd) -> io::Result<Vec<Listed>> {
        disk::list(self.open(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?)
    }

    fn readlink(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Vec<u8>> {
        Disk.readlink(dir, name)
    }

    fn get_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Disk.get_xattr(fd, name)
    }

    fn get_xattr_at(&self, dir: BorrowedFd, entry: &[u8], name: &CStr) -> io::Result<Option<Vec<u8>>> {
        Disk.get_xattr_at(dir, entry, name)
    }

    fn list_xattrs(&self, fd: BorrowedFd) -> io::Result<Vec<u8>> {
        Disk.list_xattrs(fd)
    }

    fn list_xattrs_at(&self, dir: BorrowedFd, entry: &[u8]) -> io::Result<Vec<u8>> {
        Disk.list_xattrs_at(dir, entry)
    }

    fn read(&self, fd: BorrowedFd, into: &mut [u8], offset: u64) -> io::Result<usize> {
        Disk.read(fd, into, offset)
    }

    fn seek(&self, fd: BorrowedFd, offset: u64, hole: bool) -> io::Result<u64> {
        Disk.seek(fd, offset, hole)
    }

    fn space(&self, fd: BorrowedFd) -> io::Result<Space> {
        Disk.space(fd)
    }

    fn get_flags(&self, fd: BorrowedFd) -> io::Result<u32> {
        Disk.get_flags(fd)
    }

    fn get_attributes(&self, fd: BorrowedFd) -> io::Result<[u8; 28]> {
        Disk.get_attributes(fd)
    }

    fn mkdir(&self, _dir: BorrowedFd, _name: &[u8], _mode: u32) -> io::Result<()> {
        refused()
    }

    fn mknod(&self, _dir: BorrowedFd, _name: &[u8], _mode: u32, _rdev: u32) -> io::Result<()> {
        refused()
    }

    fn symlink(&self, _target: &[u8], _dir: BorrowedFd, _name: &[u8]) -> io::Result<()> {
        refused()
    }

    fn link(&self, _fd: BorrowedFd, _dir: BorrowedFd, _name: &[u8]) -> io::Result<()> {
        refused()
    }

    fn unlink(&self, _dir: BorrowedFd, _name: &[u8]) -> io::Result<()> {
        refused()
    }

    fn rmdir(&self, _dir: BorrowedFd, _name: &[u8]) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _: BorrowedFd, _: &[u8], _: BorrowedFd, _: &[u8], _: RenameFlags) -> io::Result<()> {
        refused()
    }

    fn chmod(&self, _fd: BorrowedFd, _mode: u32) -> io::Result<()> {
        refused()
    }

    fn chown(&self, _fd: BorrowedFd, _uid: Option<u32>, _gid: Option<u32>) -> io::Result<()> {
        refused()
    }

    fn utimens(&self, _fd: BorrowedFd, _times: &Timestamps) -> io::Result<()> {
        refused()
    }

    fn set_xattr(&self, _fd: BorrowedFd, _name: &[u8], _value: &[u8], _flags: XattrFlags) -> io::Result<()> {
        refused()
    }

    fn remove_xattr(&self, _fd: BorrowedFd, _name: &[u8]) -> io::Result<()> {
        refused()
    }

    fn write(&self, _fd: BorrowedFd, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        refused()
    }

    fn copy(&self, _: BorrowedFd, _: u64, _: BorrowedFd, _: u64, _: usize) -> io::Result<usize> {
        refused()
    }

    fn truncate(&self, _fd: BorrowedFd, _size: u64) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _fd: BorrowedFd, _mode: u32, _offset: u64, _len: u64) -> io::Result<()> {
        refused()
    }

    fn sync(&self, _fd: BorrowedFd, _data_only: bool) -> io::Result<()> {
        refused()
    }

    fn lock(&self, _fd: BorrowedFd) -> io::Result<()> {
        refused()
    }

    fn set_flags(&self, _fd: BorrowedFd, _flags: u32) -> io::Result<()> {
        refused()
    }

    fn set_attributes(&self, _fd: BorrowedFd, _attributes: &[u8; 28]) -> io::Result<()> {
        refused()
    }
}

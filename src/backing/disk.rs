//! The implementation of [`Backing`] by system calls.

use super::{Backing, Listed, Raw, Space};
use crate::meta::{Kind, Time};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Gid, IFlags, Mode, OFlags, RawDir, RenameFlags, Stat,
    StatxFlags, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The backing file system, accessed by system calls.
pub struct Disk;

/// Returns the /proc/self/fd path of an open object.
fn fd_path(fd: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn entry_path(dir: BorrowedFd, entry: &[u8]) -> Vec<u8> {
    let mut path = String::with_capacity(32);
    // Writing to a String cannot fail.
    let _infallible = write!(path, "/proc/self/fd/{}/", dir.as_raw_fd());
    let mut path = path.into_bytes();
    path.extend_from_slice(entry);
    path
}

/// Repeats a call by path if it does not accept an `O_PATH` descriptor (EBADF).
fn or_by_path<T>(direct: Result<T, Errno>, by_path: impl FnOnce() -> Result<T, Errno>) -> io::Result<T> {
    match direct {
        Err(Errno::BADF) => Ok(by_path()?),
        done => Ok(done?),
    }
}

/// Reads an attribute of any size, growing the buffer until the value fits.
fn grow(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer = vec![0; 1 << 16],
            Err(e) => return Err(e),
        }
    }
}

fn present(found: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(e) => match Errno::from_io_error(&e) {
            Some(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            _ => Err(e),
        },
    }
}

fn raw(stat: &Stat) -> Raw {
    let time = |sec: i64, nsec: u64| Time { sec, nsec: nsec as u32 };
    Raw {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: crate::meta::device(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)).unwrap_or(u32::MAX),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

fn kind(found: FileType) -> Option<Kind> {
    Kind::of(found.as_raw_mode())
}

/// Splits the kernel's 32-bit device number.
fn wide_device(rdev: u32) -> u64 {
    rustix::fs::makedev((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & !0xff))
}

/// Lists a directory through a descriptor that was opened for this.
pub(super) fn list(dir: OwnedFd) -> io::Result<Vec<Listed>> {
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut reader = RawDir::new(dir, &mut buffer);
    let mut all = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            all.push(Listed { name: name.to_vec(), ino: entry.ino(), kind: kind(entry.file_type()) });
        }
    }
    Ok(all)
}

/// Fills `into` from `offset` on.
pub fn read_exact(fd: BorrowedFd, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        match Disk.read(fd, into, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            done => {
                into = &mut into[done..];
                offset += done as u64;
            }
        }
    }
    Ok(())
}

impl Backing for Disk {
    fn open(&self, dir: BorrowedFd, name: &[u8], flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))?;
        if !flags.contains(OFlags::PATH) {
            // The mount reports no access times of reads (`noatime`), so none must be written to disk either. Only the
            // owner may set O_NOATIME, so an error is ignored; set at open, it would make the open fail.
            let _refused = rustix::fs::fcntl_setfl(&opened, OFlags::NOATIME);
        }
        Ok(opened)
    }

    fn stat(&self, fd: BorrowedFd) -> io::Result<Raw> {
        Ok(raw(&rustix::fs::fstat(fd)?))
    }

    fn stat_without_times(&self, fd: BorrowedFd) -> io::Result<Raw> {
        let asked = StatxFlags::BASIC_STATS - StatxFlags::MTIME - StatxFlags::CTIME;
        let found = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, asked)?;
        let time = Time { sec: found.stx_atime.tv_sec, nsec: found.stx_atime.tv_nsec };
        Ok(Raw {
            dev: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            ino: found.stx_ino,
            mode: found.stx_mode.into(),
            nlink: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            rdev: crate::meta::device(found.stx_rdev_major, found.stx_rdev_minor).unwrap_or(u32::MAX),
            size: found.stx_size,
            blocks: found.stx_blocks,
            atime: time,
            mtime: time,
            ctime: time,
        })
    }

    fn stat_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Raw> {
        Ok(raw(&rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn list(&self, dir: BorrowedFd) -> io::Result<Vec<Listed>> {
        list(self.open(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?)
    }

    fn mkdir(&self, dir: BorrowedFd, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
    }

    fn mknod(&self, dir: BorrowedFd, name: &[u8], mode: u32, rdev: u32) -> io::Result<()> {
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode));
        Ok(rustix::fs::mknodat(dir, name, kind, mode, wide_device(rdev))?)
    }

    fn symlink(&self, target: &[u8], dir: BorrowedFd, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, dir, name)?)
    }

    fn readlink(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
    }

    fn link(&self, fd: BorrowedFd, dir: BorrowedFd, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, fd_path(fd), dir, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    fn unlink(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn rmdir(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }

    fn rename(&self, from: BorrowedFd, name: &[u8], to: BorrowedFd, new: &[u8], flags: RenameFlags) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(from, name, to, new, flags)?)
    }

    fn chmod(&self, fd: BorrowedFd, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        or_by_path(rustix::fs::fchmod(fd, mode), || rustix::fs::chmod(fd_path(fd), mode))
    }

    fn chown(&self, fd: BorrowedFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        Ok(rustix::fs::chownat(fd, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?)
    }

    fn utimens(&self, fd: BorrowedFd, times: &Timestamps) -> io::Result<()> {
        let by_path = || rustix::fs::utimensat(CWD, fd_path(fd), times, AtFlags::empty());
        or_by_path(rustix::fs::futimens(fd, times), by_path)
    }

    fn get_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let direct = grow(|buffer| rustix::fs::fgetxattr(fd, name, buffer));
        present(or_by_path(direct, || grow(|buffer| rustix::fs::getxattr(fd_path(fd), name, buffer))))
    }

    fn get_xattr_at(&self, dir: BorrowedFd, entry: &[u8], name: &CStr) -> io::Result<Option<Vec<u8>>> {
        let path = entry_path(dir, entry);
        present(grow(|buffer| rustix::fs::lgetxattr(&*path, name, buffer)).map_err(io::Error::from))
    }

    fn set_xattr(&self, fd: BorrowedFd, name: &[u8], value: &[u8], flags: XattrFlags) -> io::Result<()> {
        let by_path = || rustix::fs::setxattr(fd_path(fd), name, value, flags);
        or_by_path(rustix::fs::fsetxattr(fd, name, value, flags), by_path)
    }

    fn remove_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<()> {
        or_by_path(rustix::fs::fremovexattr(fd, name), || rustix::fs::removexattr(fd_path(fd), name))
    }

    fn list_xattrs(&self, fd: BorrowedFd) -> io::Result<Vec<u8>> {
        let direct = grow(|buffer| rustix::fs::flistxattr(fd, buffer));
        let listed = or_by_path(direct, || grow(|buffer| rustix::fs::listxattr(fd_path(fd), buffer)));
        Ok(present(listed)?.unwrap_or_default())
    }

    fn list_xattrs_at(&self, dir: BorrowedFd, entry: &[u8]) -> io::Result<Vec<u8>> {
        let path = entry_path(dir, entry);
        let listed = grow(|buffer| rustix::fs::llistxattr(&*path, buffer)).map_err(io::Error::from);
        Ok(present(listed)?.unwrap_or_default())
    }

    fn read(&self, fd: BorrowedFd, into: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *into, offset))?)
    }

    fn write(&self, fd: BorrowedFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, bytes, offset))?)
    }

    fn copy(&self, from: BorrowedFd, mut at: u64, to: BorrowedFd, mut to_at: u64, len: usize) -> io::Result<usize> {
        let (at, to_at) = (&mut at, &mut to_at);
        Ok(rustix::io::retry_on_intr(|| rustix::fs::copy_file_range(from, Some(at), to, Some(to_at), len))?)
    }

    fn truncate(&self, fd: BorrowedFd, size: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(fd, size)?)
    }

    fn allocate(&self, fd: BorrowedFd, mode: u32, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(fd, FallocateFlags::from_bits_retain(mode), offset, len)?)
    }

    fn seek(&self, fd: BorrowedFd, offset: u64, hole: bool) -> io::Result<u64> {
        use rustix::fs::SeekFrom;
        Ok(rustix::fs::seek(fd, if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) })?)
    }

    fn sync(&self, fd: BorrowedFd, data_only: bool) -> io::Result<()> {
        Ok(if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }?)
    }

    fn lock(&self, fd: BorrowedFd) -> io::Result<()> {
        Ok(rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive)?)
    }

    fn space(&self, fd: BorrowedFd) -> io::Result<Space> {
        let found = rustix::fs::fstatvfs(fd)?;
        Ok(Space {
            block: found.f_frsize,
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
        })
    }

    fn get_flags(&self, fd: BorrowedFd) -> io::Result<u32> {
        Ok(rustix::fs::ioctl_getflags(fd)?.bits())
    }

    fn set_flags(&self, fd: BorrowedFd, flags: u32) -> io::Result<()> {
        Ok(rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(flags))?)
    }

    fn get_attributes(&self, fd: BorrowedFd) -> io::Result<[u8; 28]> {
        crate::sys::get_file_attributes(&fd)
    }

    fn set_attributes(&self, fd: BorrowedFd, attributes: &[u8; 28]) -> io::Result<()> {
        crate::sys::set_file_attributes(&fd, attributes)
    }
}

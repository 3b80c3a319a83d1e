//! The kernel's requests: convert, call [`Fs`], reply.

use super::convert;
use super::wake::Wake;
use crate::fs::{BLOCK_SIZE, Fs, FsError};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An image never changes: the kernel may keep what it has been told for ever. The longest time that does not overflow
/// when the kernel turns it into ticks.
const FOREVER: Duration = Duration::from_secs(1 << 31);
/// Nothing is ever exported under a second meaning, since inode numbers are not reused.
const GENERATION: Generation = Generation(0);
/// The largest request that the kernel makes by default (fs.fuse.max_pages_limit).
const MAX_REQUEST: u32 = 1 << 20;

pub struct Adapter {
    fs: Arc<Fs>,
    wake: Arc<Wake>,
    /// Whether the kernel is to heed POSIX ACLs. That makes it check all permissions, so it is for mounts that want
    /// that only; and it costs a request per inode that a caller's group decides about, so for images with ACLs only.
    heed_acls: bool,
}

impl Adapter {
    pub fn new(fs: Arc<Fs>, wake: Arc<Wake>, check_permissions: bool) -> Adapter {
        let heed_acls = check_permissions && fs.has_acls();
        Adapter { fs, wake, heed_acls }
    }

    /// The errno for the caller, and a line in the log if the fault is the store's.
    fn failed(&self, operation: &str, ino: INodeNo, error: &FsError) -> Errno {
        if error.is_damage() {
            tracing::error!("{operation} of inode {}: {error}", ino.0);
        }
        convert::errno(error)
    }
}

/// What a name that does not exist is answered with, so that the kernel remembers its absence: inode 0. The kernel looks
/// at nothing else of it.
const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// What every attempt to change an image gets.
fn read_only() -> Errno {
    convert::errno(&FsError::ReadOnly)
}

fn xattr_reply(reply: ReplyXattr, size: u32, value: &[u8]) {
    if size == 0 {
        // Values and lists are held to 64 KiB when a layer is indexed.
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(convert::errno(&FsError::Range));
    } else {
        reply.data(value);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_EXPORT_SUPPORT,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::warn!("this kernel's FUSE lacks {flag:?}: some operations will be slower");
            }
        }
        if self.heed_acls && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::warn!("this kernel's FUSE does not heed POSIX ACLs: they are shown, but grant nothing");
        }
        // Both calls fail only by naming the nearest value that fits, which is then taken.
        if let Err(fits) = config.set_max_write(MAX_REQUEST) {
            config.set_max_write(fits).ok();
        }
        if let Err(fits) = config.set_max_readahead(MAX_REQUEST) {
            config.set_max_readahead(fits).ok();
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.wake.touch();
        let found = match name.as_bytes() {
            b"." => self.fs.getattr(parent.0),
            b".." => self.fs.parent(parent.0).and_then(|ino| self.fs.getattr(ino)),
            name => self.fs.lookup(parent.0, name),
        };
        match found {
            Ok(attr) => reply.entry(&FOREVER, &convert::attr(&attr), GENERATION),
            Err(FsError::NotFound) => reply.entry(&FOREVER, &ABSENT, GENERATION),
            Err(e) => reply.error(self.failed("lookup", parent, &e)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.wake.touch();
        match self.fs.getattr(ino.0) {
            Ok(attr) => reply.attr(&FOREVER, &convert::attr(&attr)),
            Err(e) => reply.error(self.failed("getattr", ino, &e)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.wake.touch();
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(target),
            Err(e) => reply.error(self.failed("readlink", ino, &e)),
        }
    }

    /// ENOSYS, once: from then on the kernel opens files by itself and keeps their pages.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.wake.touch();
        reply.error(Errno::ENOSYS);
    }

    /// ENOSYS, once, as for [`Adapter::open`].
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.wake.touch();
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.wake.touch();
        match self.fs.read(ino.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(self.failed("read", ino, &e)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.wake.touch();
        let listed = self.fs.readdir(ino.0, offset, |entry| {
            reply.add(INodeNo(entry.ino), entry.next, convert::kind(entry.kind), OsStr::from_bytes(entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.failed("readdir", ino, &e)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.wake.touch();
        let listed = self.fs.readdirplus(ino.0, offset, |entry, attr| {
            let name = OsStr::from_bytes(entry.name);
            reply.add(INodeNo(entry.ino), entry.next, name, &FOREVER, &convert::attr(attr), GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.failed("readdirplus", ino, &e)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.wake.touch();
        let stat = self.fs.statfs();
        let name_max = crate::name::NAME_MAX as u32;
        reply.statfs(stat.blocks, 0, 0, stat.files, 0, BLOCK_SIZE, name_max, BLOCK_SIZE);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.wake.touch();
        match self.fs.getxattr(ino.0, name.as_bytes()) {
            Ok(value) => xattr_reply(reply, size, value),
            Err(e) => reply.error(self.failed("getxattr", ino, &e)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.wake.touch();
        match self.fs.listxattr(ino.0, request.uid() == 0) {
            Ok(names) => xattr_reply(reply, size, &names),
            Err(e) => reply.error(self.failed("listxattr", ino, &e)),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.wake.touch();
        let found = u64::try_from(offset)
            .map_err(|_| FsError::NoData)
            .and_then(|offset| self.fs.seek(ino.0, offset, whence == libc::SEEK_HOLE));
        match found {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(self.failed("lseek", ino, &e)),
        }
    }

    // The kernel keeps writers out of a read-only mount by itself; these are for when root has remounted it writable.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(read_only());
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(read_only());
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(read_only());
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(read_only());
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(read_only());
    }

    /// ENOSYS, once each: nothing is ever written, so there is nothing to flush or to sync, and the kernel need not ask.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

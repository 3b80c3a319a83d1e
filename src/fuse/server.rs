//! FUSE request handlers: convert a request, call [`Fs`], reply. Implements fuser's `Filesystem` trait.

use super::caller::Caller;
use super::ids::Ids;
use super::listings::Listings;
use super::negotiate::negotiate;
use super::pool::Pool;
use super::reply::{ABSENT, failed, reply_empty, reply_xattr};
use super::set_id::Requester;
use super::syncing::Syncing;
use super::traffic::Traffic;
use super::{Options, convert, ioctl, once};
use crate::fs::{ACCESS_ACL, Attr, Change, Fs, FsError, New, Replace, Running};
use crate::handover::{Before, Handover, Record};
use crate::meta::Kind;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// The cache timeout of attributes and entries: never. An image does not change, and an upper directory changes
/// through this mount only. This is the longest time that does not overflow when the kernel converts it to jiffies.
const NO_EXPIRY: Duration = Duration::from_secs(1 << 31);
/// The FUSE server of one mount.
pub struct Server {
    fs: Arc<Fs>,
    traffic: Arc<Traffic>,
    pool: Pool,
    /// Whether a worker is in fsync; see [`Syncing`].
    syncing: AtomicBool,
    /// Invalidates the kernel's caches. Set once the session is established.
    notifier: Arc<OnceLock<Notifier>>,
    /// The mount's memory.
    handover: Arc<Handover>,
    listings: Listings,
    /// Whether the kernel enforces POSIX ACLs (FUSE_POSIX_ACL). That implies permission checks by the kernel, so it
    /// requires `default_permissions`; and it costs a request per inode whose permissions depend on the caller's
    /// groups, so only if there are ACLs.
    honors_acls: bool,
    /// Whether the kernel checks permissions (`default_permissions`); then a change may clear the set-group-ID bit.
    checks: bool,
    /// Whether the kernel maintains the mtime and ctime of files (FUSE_WRITEBACK_CACHE). It sends the times that it
    /// sets.
    keeps_times: bool,
    xattrs: bool,
    ids: Ids,
}

impl Server {
    pub fn new(
        fs: Arc<Fs>,
        traffic: Arc<Traffic>,
        notifier: Arc<OnceLock<Notifier>>,
        options: &Options,
        handover: Arc<Handover>,
    ) -> Server {
        let honors_acls = options.default_permissions && options.acls && options.xattrs && fs.has_acls();
        let ids = Ids { users: options.users.clone(), groups: options.groups.clone() };
        let (pool, syncing, xattrs) = (Pool::default(), AtomicBool::new(false), options.xattrs);
        let (checks, keeps_times) = (options.default_permissions, false);
        let listings = Listings::new(handover.is_resumed());
        Server {
            fs,
            traffic,
            pool,
            syncing,
            notifier,
            handover,
            listings,
            honors_acls,
            checks,
            keeps_times,
            xattrs,
            ids,
        }
    }

    /// Begins a request that is executed in this worker.
    fn begin(&self, request: &Request) -> Option<Running<'_>> {
        self.traffic.note(request);
        self.fs.begin()
    }

    /// Converts attributes, with owners mapped to shown IDs.
    fn show(&self, attr: &Attr) -> FileAttr {
        convert::attr(&self.ids.show(attr))
    }

    /// Describes a new inode, owned by the caller.
    fn new_of<'a>(&self, request: &Request, kind: Kind, mode: u32, umask: u32) -> New<'a> {
        let (uid, gid) = (self.ids.users.stored(request.uid()), self.ids.groups.stored(request.gid()));
        New { kind, mode, umask, rdev: 0, uid, gid, target: b"" }
    }

    fn generation(&self, ino: u64) -> Generation {
        Generation(self.fs.generation(ino).into())
    }

    /// Replies with an inode. The kernel then holds a reference (`nlookup`) to it.
    fn reply_entry(&self, reply: ReplyEntry, operation: &str, parent: INodeNo, made: Result<Attr, FsError>) {
        match made {
            Ok(attr) => {
                self.fs.remember(attr.ino);
                reply.entry(&NO_EXPIRY, &self.show(&attr), self.generation(attr.ino));
            }
            Err(e) => reply.error(failed(operation, parent, &e)),
        }
    }

    /// [`once::once`] with the mount's memory.
    fn once<T>(
        &self,
        request: &Request,
        now: impl FnOnce() -> Before,
        execute: impl FnOnce() -> T,
        recall: impl FnOnce(Before) -> T,
    ) -> (T, Record) {
        once::once(&self.handover, request, now, execute, recall)
    }

    /// [`once::record_mtime`], if the kernel maintains the file's times.
    fn record_mtime(&self, request: &Request, ino: INodeNo, keeps_mtime: bool) -> Option<Record> {
        if keeps_mtime { once::record_mtime(&self.handover, request, &self.fs, ino.0) } else { None }
    }

    /// Creates an object, and replies.
    fn make(
        &self,
        request: &Request,
        reply: ReplyEntry,
        (operation, parent, name): (&str, INodeNo, &OsStr),
        new: Result<New<'_>, FsError>,
    ) {
        let name = name.as_bytes();
        let (made, _record) = self.once(
            request,
            || [once::number(&self.fs, parent.0, name), 0, 0],
            || self.fs.make(parent.0, name, &new?),
            |_| self.fs.lookup(parent.0, name),
        );
        self.changed(parent.0);
        self.reply_entry(reply, operation, parent, made);
    }

    /// Invalidates the kernel's cache of a directory's entries if a listing that fills it is under way. Before the
    /// answer to the request that has changed a name.
    fn changed(&self, dir: u64) {
        if self.listings.must_tell(dir)
            && let Some(notifier) = self.notifier.get()
        {
            // An error only means that the directory is not cached.
            let _not_cached = notifier.inval_inode(INodeNo(dir), 0, 0);
        }
    }

    /// Returns those of renamed inodes that are directories: their parent may have changed.
    fn moved(&self, renamed: &[u64]) -> Vec<u64> {
        let is_dir = |ino: &&u64| self.fs.getattr(**ino).is_ok_and(|attr| attr.kind == Kind::Dir);
        renamed.iter().filter(is_dir).copied().collect()
    }

    /// Removes a name, and replies.
    fn remove(
        &self,
        request: &Request,
        reply: ReplyEmpty,
        (operation, parent, name): (&str, INodeNo, &OsStr),
        remove: impl FnOnce(&Fs, u64, &[u8]) -> Result<(), FsError>,
    ) {
        let name = name.as_bytes();
        let (done, _record) = self.once(
            request,
            || [once::number(&self.fs, parent.0, name), 0, 0],
            || remove(&self.fs, parent.0, name),
            |[removed, ..]| self.fs.note_removed(removed),
        );
        self.changed(parent.0);
        reply_empty(reply, operation, parent, done);
    }

    fn requester(&self, request: &Request) -> Requester {
        Requester { ids: self.ids.clone(), caller: Caller::of(request), checks: self.checks }
    }

    /// Returns a closure that strips a file's set-ID bits before a write. `is_judged` as in
    /// [`Requester::strip_before_write`].
    fn set_id_stripper(
        &self,
        request: &Request,
        ino: INodeNo,
        is_judged: bool,
    ) -> impl FnOnce(&Fs) -> Result<(), FsError> + Send + 'static {
        let (requester, notifier) = (self.requester(request), self.notifier.clone());
        move |fs| {
            if requester.strip_before_write(fs, ino.0, is_judged)? {
                forget_attributes(&notifier, ino);
            }
            Ok(())
        }
    }

    /// Runs an operation in this worker, or, if it is slow, on a thread of the pool; then passes its result to `then`.
    fn dispatch<T: Send + 'static>(
        &self,
        slow: bool,
        what: impl FnOnce(&Fs) -> T + Send + 'static,
        then: impl FnOnce(T) + Send + 'static,
    ) {
        if slow {
            let fs = self.fs.clone();
            self.pool.run(move || {
                let _running = fs.begin();
                then(what(&fs));
            });
        } else {
            then(what(&self.fs));
        }
    }
}

/// Invalidates the kernel's cached attributes and ACLs of an inode. Without FUSE_POSIX_ACL the kernel caches ACLs
/// from the first such call on, so every later change must be notified as well.
fn forget_attributes(notifier: &OnceLock<Notifier>, ino: INodeNo) {
    if let Some(notifier) = notifier.get() {
        // With a negative offset no data is invalidated. An error only means that the inode is not cached.
        let _not_cached = notifier.inval_inode(ino, -1, 0);
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.keeps_times = negotiate(config, self.fs.is_writable(), self.honors_acls);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _running = self.begin(request);
        let found = match name.as_bytes() {
            // open_by_handle_at(2) of an inode that is not in the kernel's cache.
            b"." => self.fs.by_number(parent.0),
            b".." => self.fs.parent(parent.0).and_then(|ino| self.fs.getattr(ino)),
            name => self.fs.lookup(parent.0, name),
        };
        match found {
            Err(FsError::NotFound) => reply.entry(&NO_EXPIRY, &ABSENT, Generation(0)),
            found => self.reply_entry(reply, "lookup", parent, found),
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _running = self.begin(request);
        match self.fs.getattr(ino.0) {
            Ok(attr) => reply.attr(&NO_EXPIRY, &self.show(&attr)),
            Err(e) => reply.error(failed("getattr", ino, &e)),
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let _running = self.begin(request);
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(failed("readlink", ino, &e)),
        }
    }

    /// ENOSYS: the kernel sends no further open requests, and keeps cached pages across opens (FUSE_NO_OPEN_SUPPORT).
    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _running = self.begin(request);
        reply.error(Errno::ENOSYS);
    }

    /// ENOSYS, as for [`Server::open`].
    fn opendir(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _running = self.begin(request);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _running = self.begin(request);
        self.traffic.note_data(size);
        match self.fs.read(ino.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(failed("read", ino, &e)),
        }
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _running = self.begin(request);
        let mut is_end = true;
        let listed = self.fs.readdir(ino.0, offset, |entry| {
            is_end = false;
            reply.add(INodeNo(entry.ino), entry.next, convert::kind(entry.kind), OsStr::from_bytes(entry.name))
        });
        self.listings.note(ino.0, is_end);
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(failed("readdir", ino, &e)),
        }
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let _running = self.begin(request);
        let mut is_end = true;
        let listed = self.fs.readdirplus(ino.0, offset, |entry, attr| {
            is_end = false;
            let name = OsStr::from_bytes(entry.name);
            let (shown, generation) = (self.show(attr), self.generation(entry.ino));
            let full = reply.add(INodeNo(entry.ino), entry.next, name, &NO_EXPIRY, &shown, generation);
            // The kernel takes no reference to `.` and `..`.
            if !full && entry.name != b"." && entry.name != b".." {
                self.fs.remember(entry.ino);
            }
            full
        });
        self.listings.note(ino.0, is_end);
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(failed("readdirplus", ino, &e)),
        }
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let _running = self.begin(request);
        let name_max = crate::name::NAME_MAX as u32;
        match self.fs.statfs() {
            Ok(stat) => reply.statfs(
                stat.blocks,
                stat.free,
                stat.available,
                stat.files,
                stat.files_free,
                stat.block,
                name_max,
                stat.block,
            ),
            Err(e) => reply.error(failed("statfs", INodeNo::ROOT, &e)),
        }
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _running = self.begin(request);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match self.fs.getxattr(ino.0, name.as_bytes()) {
            Ok(value) if self.ids.concerns(name.as_bytes()) => {
                reply_xattr(reply, size, &self.ids.show_value(name.as_bytes(), value.into_owned()));
            }
            Ok(value) => reply_xattr(reply, size, &value),
            Err(e) => reply.error(failed("getxattr", ino, &e)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _running = self.begin(request);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match self.fs.listxattr(ino.0, request.uid() == 0) {
            Ok(names) => reply_xattr(reply, size, &names),
            Err(e) => reply.error(failed("listxattr", ino, &e)),
        }
    }

    fn lseek(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _running = self.begin(request);
        let writable = self.fs.is_writable();
        let notifier = self.notifier.clone();
        let seek = move |fs: &Fs| {
            let from = u64::try_from(offset).map_err(|_| FsError::NoData)?;
            // The kernel does not write back dirty pages before lseek; an invalidation makes it do so.
            if let Some(notifier) = notifier.get().filter(|_| writable) {
                let _not_cached = notifier.inval_inode(ino, offset, 0);
            }
            fs.seek(ino.0, from, whence == libc::SEEK_HOLE)
        };
        self.dispatch(writable, seek, move |found| match found {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(failed("lseek", ino, &e)),
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        let _running = self.fs.begin();
        self.listings.forget(ino.0);
        self.fs.forget(ino.0, count);
    }

    // The kernel rejects changes on a read-only mount, unless root has remounted it read-write: then `fs` returns
    // EROFS for each of the following requests.

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _running = self.begin(request);
        let (atime, mtime) = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let (uid, gid) = (uid.map(|id| self.ids.users.stored(id)), gid.map(|id| self.ids.groups.stored(id)));
        let ctime = ctime.map(convert::time_of).filter(|_| self.keeps_times);
        let change = Change { mode, uid, gid, size, atime, mtime, ctime };
        let slow = size.is_some_and(|size| size > 0) && self.fs.is_slow_to_write(ino.0);
        let requester = self.requester(request);
        let keeps_mtime = self.keeps_times && size.is_some() && mtime.is_none();
        let record = self.record_mtime(request, ino, keeps_mtime);
        if mode.is_some() && !self.honors_acls {
            // The mode change also changes the ACL.
            forget_attributes(&self.notifier, ino);
        }
        self.dispatch(
            slow,
            move |fs| {
                let changed = requester.set_attributes(fs, ino.0, &change);
                if keeps_mtime {
                    fs.keep_mtime(ino.0);
                }
                changed.map(|attr| convert::attr(&requester.ids.show(&attr)))
            },
            move |done| {
                match done {
                    Ok(attr) => reply.attr(&NO_EXPIRY, &attr),
                    Err(e) => reply.error(failed("setattr", ino, &e)),
                }
                drop(record);
            },
        );
    }

    // No `create` handler: the kernel then sends mknod, opens the file without a request, and sends no release when
    // it is closed.

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _running = self.begin(request);
        let new =
            Kind::of(mode).map(|kind| New { rdev, ..self.new_of(request, kind, mode, umask) }).ok_or(FsError::Invalid);
        self.make(request, reply, ("mknod", parent, name), new);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _running = self.begin(request);
        let new = self.new_of(request, Kind::Dir, mode, umask);
        self.make(request, reply, ("mkdir", parent, name), Ok(new));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _running = self.begin(request);
        let new = New { target: target.as_os_str().as_bytes(), ..self.new_of(request, Kind::Symlink, 0o777, 0) };
        self.make(request, reply, ("symlink", parent, name), Ok(new));
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _running = self.begin(request);
        let name = name.as_bytes();
        let (made, _record) = self.once(
            request,
            || [once::number(&self.fs, parent.0, name), 0, 0],
            || self.fs.link(ino.0, parent.0, name),
            |_| self.fs.lookup(parent.0, name),
        );
        self.changed(parent.0);
        self.reply_entry(reply, "link", ino, made);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _running = self.begin(request);
        self.remove(request, reply, ("unlink", parent, name), Fs::unlink);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _running = self.begin(request);
        self.remove(request, reply, ("rmdir", parent, name), Fs::rmdir);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _running = self.begin(request);
        let ((parent_ino, name), (new_ino, new_name)) =
            ((parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()));
        let (moved, _record) = self.once(
            request,
            || {
                let [old, new] =
                    [(parent_ino, name), (new_ino, new_name)].map(|(dir, name)| once::number(&self.fs, dir, name));
                [old, new, 0]
            },
            || convert::replace(flags).and_then(|replace| self.fs.rename(parent_ino, name, new_ino, new_name, replace)),
            |[old, new, _]| match convert::replace(flags)? {
                Replace::Exchange => Ok(self.moved(&[old, new])),
                Replace::Allow | Replace::Forbid => {
                    self.fs.note_removed(new)?;
                    Ok(self.moved(&[old]))
                }
            },
        );
        if let (Ok(moved), Some(notifier)) = (&moved, self.notifier.get()) {
            for dir in moved {
                // An error only means that the directory is not cached.
                let _not_cached = notifier.inval_inode(INodeNo(*dir), 0, 0);
            }
        }
        self.changed(parent_ino);
        self.changed(new_ino);
        reply_empty(reply, "rename", parent, moved.map(drop));
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _running = self.begin(request);
        let written = bytes.len() as u32;
        self.traffic.note_data(written);
        let held_back = self.keeps_times || flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let record = self.record_mtime(request, ino, held_back);
        let then = move |done: Result<(), FsError>| {
            match done {
                Ok(()) => reply.written(written),
                Err(e) => reply.error(failed("write", ino, &e)),
            }
            drop(record);
        };
        let must_strip = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let strip = must_strip.then(|| self.set_id_stripper(request, ino, true));
        let write = move |fs: &Fs, bytes: &[u8]| {
            strip.map_or(Ok(()), |strip| strip(fs))?;
            match held_back {
                true => fs.write_back(ino.0, offset, bytes),
                false => fs.write(ino.0, offset, bytes),
            }
        };
        if self.fs.is_slow_to_write(ino.0) {
            let bytes = bytes.to_vec();
            self.dispatch(true, move |fs| write(fs, &bytes), then);
        } else {
            then(write(&self.fs, bytes));
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _running = self.begin(request);
        let slow = self.fs.is_slow_to_write(ino.0);
        let keeps_mtime = self.keeps_times;
        let record = self.record_mtime(request, ino, keeps_mtime);
        let then = move |done| {
            reply_empty(reply, "fallocate", ino, done);
            drop(record);
        };
        let strip = self.set_id_stripper(request, ino, false);
        let allocate = move |fs: &Fs| {
            strip(fs)?;
            fs.fallocate(ino.0, mode, offset, len)?;
            if keeps_mtime {
                fs.keep_mtime(ino.0);
            }
            Ok(())
        };
        self.dispatch(slow, allocate, then);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        at: u64,
        to: INodeNo,
        _: FileHandle,
        to_at: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _running = self.begin(request);
        let keeps_mtime = self.keeps_times;
        let strip = self.set_id_stripper(request, to, false);
        let copy = move |fs: &Fs| {
            strip(fs)?;
            let copied = fs.copy_range(from.0, at, to.0, to_at, len)?;
            if keeps_mtime {
                fs.keep_mtime(to.0);
            }
            Ok::<u64, FsError>(copied)
        };
        let record = self.record_mtime(request, to, keeps_mtime);
        self.dispatch(true, copy, move |done| {
            match done {
                Ok(copied) => reply.written(copied as u32),
                Err(e) => reply.error(failed("copy_file_range", to, &e)),
            }
            drop(record);
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let _running = self.begin(request);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let value = self.ids.store_value(name.as_bytes(), value.to_vec());
        let name = name.as_bytes();
        let set = || self.fs.setxattr(ino.0, name, &value, flags);
        let (mut done, _record) = match flags & libc::XATTR_CREATE {
            0 => (set(), None),
            _ => {
                let now = || [once::has_xattr(&self.fs, ino.0, name), 0, 0];
                let (done, record) = self.once(request, now, set, |_| Ok(()));
                (done, Some(record))
            }
        };
        if done.is_ok() && name == ACCESS_ACL {
            // The ACL change also changed the mode.
            forget_attributes(&self.notifier, ino);
            if self.checks {
                done = self.requester(request).strip_after_acl(&self.fs, ino.0);
            }
        }
        reply_empty(reply, "setxattr", ino, done);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _running = self.begin(request);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let name = name.as_bytes();
        let (done, _record) = self.once(
            request,
            || [once::has_xattr(&self.fs, ino.0, name), 0, 0],
            || self.fs.removexattr(ino.0, name),
            |_| Ok(()),
        );
        if done.is_ok() && name == ACCESS_ACL {
            forget_attributes(&self.notifier, ino);
        }
        reply_empty(reply, "removexattr", ino, done);
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        given: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let _running = self.begin(request);
        match ioctl::handle(&self.fs, ino.0, command, given) {
            Ok(answer) => {
                if ioctl::changes(command) {
                    // The ioctl changed the ctime.
                    forget_attributes(&self.notifier, ino);
                }
                reply.ioctl(0, &answer);
            }
            Err(e) => reply.error(failed("ioctl", ino, &e)),
        }
    }

    /// ENOSYS: the kernel sends no further flush requests. It writes back dirty pages at close, and nothing else is
    /// to do.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// ENOSYS on a read-only mount: the kernel sends no further fsync requests.
    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _running = self.begin(request);
        if !self.fs.is_writable() {
            return reply.error(Errno::ENOSYS);
        }
        // One fsync at a time runs in its worker, which saves a thread switch; the other worker stays free.
        let _syncing = match Syncing::begin(&self.syncing) {
            Some(here) => here,
            None => {
                let then = move |done| reply_empty(reply, "fsync", ino, done);
                return self.dispatch(true, move |fs| fs.fsync(ino.0, data_only), then);
            }
        };
        reply_empty(reply, "fsync", ino, self.fs.fsync(ino.0, data_only));
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.fsync(request, ino, handle, data_only, reply);
    }
}

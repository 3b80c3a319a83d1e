//! A harness that carries out steps by system calls on a directory.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RawDir, RawDirEntry, RenameFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::Errno;

use super::check::Checks;
use super::harness::Harness;
use super::image::file_type;
use super::op::{Alloc, At, Op, Outcome, Replace, SLOTS, Stamp, XattrFlag, expand, pattern, xattr_value};
use super::place::{TestFs, View};
use crate::support::tree::{Contents, Record, Tree, scan};

/// The length of a mapping; loads and stores stay below the file's size.
const MAP_LEN: usize = 1 << 20;

enum Slot {
    /// A descriptor, and the entries of a listing that has begun.
    Open(File, Vec<(CString, FileType)>),
    Map(MmapRaw),
}

/// A harness that works on the directory of a [`TestFs`].
pub struct SyscallHarness {
    test_fs: Box<dyn TestFs>,
    /// Opened when it is needed, and closed before the file system is remounted.
    root: Option<OwnedFd>,
    slots: [Option<Slot>; SLOTS],
}

type OpResult = Result<Outcome, Errno>;

const DONE: OpResult = Ok(Outcome::Done);

fn count(count: impl TryInto<u64>) -> OpResult {
    Ok(Outcome::Count(count.try_into().unwrap_or(u64::MAX)))
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn at_flags(follow: bool) -> AtFlags {
    if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW }
}

impl Harness for SyscallHarness {
    fn apply(&mut self, op: &Op) -> Result<Outcome, i32> {
        self.apply_to_names(op).map_err(Errno::raw_os_error)
    }

    fn tree(&mut self) -> Tree {
        scan(self.test_fs.root(), Contents::Hash)
    }

    fn content(&mut self, path: &[u8]) -> Vec<u8> {
        let path = self.test_fs.root().join(std::ffi::OsStr::from_bytes(&path[1..]));
        std::fs::read(path).unwrap_or_default()
    }

    fn may_refuse(&self, op: &Op) -> Option<i32> {
        self.test_fs.may_refuse(op)
    }

    fn checks(&self) -> Checks {
        self.test_fs.checks()
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        self.close();
        self.test_fs.finish()
    }
}

impl SyscallHarness {
    pub fn new(test_fs: Box<dyn TestFs>) -> Self {
        Self { test_fs, root: None, slots: [const { None }; SLOTS] }
    }

    fn close(&mut self) {
        self.slots = [const { None }; SLOTS];
        self.root = None;
    }

    fn root(&mut self) -> &OwnedFd {
        let path = self.test_fs.root();
        let open = || rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        self.root.get_or_insert_with(|| open().unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn open_with(&mut self, at: At, flags: OFlags, mode: u32) -> Result<File, Errno> {
        // Should a fifo stand where the model has a file, the run must not hang.
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(rustix::fs::openat(self.root(), expand(at), flags, Mode::from_raw_mode(mode))?.into())
    }

    fn open(&mut self, at: At, flags: OFlags) -> Result<File, Errno> {
        self.open_with(at, flags, 0)
    }

    /// A path for the calls that take no directory.
    fn full(&mut self, at: At) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}", self.root().as_raw_fd(), expand(at)))
    }

    fn apply_to_names(&mut self, op: &Op) -> OpResult {
        use rustix::fs::{linkat, mkdirat, mknodat, renameat_with, symlinkat, unlinkat};
        match *op {
            Op::Create { at, mode, excl } => {
                let excl = if excl { OFlags::EXCL } else { OFlags::empty() };
                self.open_with(at, OFlags::CREATE | OFlags::RDWR | excl, mode)?;
            }
            Op::Mkdir { at, mode } => mkdirat(self.root(), expand(at), Mode::from_raw_mode(mode))?,
            Op::Mknod { at, kind, mode, rdev } => {
                let device = rustix::fs::makedev(rdev.0, rdev.1);
                mknodat(self.root(), expand(at), file_type(kind), Mode::from_raw_mode(mode), device)?;
            }
            Op::Symlink { at, target } => symlinkat(expand(target), self.root(), expand(at))?,
            Op::Link { from, to, follow } => {
                let flags = if follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                let root = self.root();
                linkat(root, expand(from), root, expand(to), flags)?;
            }
            Op::Unlink { at } => unlinkat(self.root(), expand(at), AtFlags::empty())?,
            Op::Rmdir { at } => unlinkat(self.root(), expand(at), AtFlags::REMOVEDIR)?,
            Op::RemoveAll { at } => {
                // The path may lead through the removed entries.
                let path = expand(at);
                let (above, name) = path.rsplit_once('/').unwrap_or((".", &path));
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(self.root(), above, flags, Mode::empty())?;
                remove_all(&dir, name.as_bytes())?;
            }
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Replace::Allow => RenameFlags::empty(),
                    Replace::Forbid => RenameFlags::NOREPLACE,
                    Replace::Exchange => RenameFlags::EXCHANGE,
                };
                let root = self.root();
                renameat_with(root, expand(from), root, expand(to), flags)?;
            }
            Op::Remount => {
                self.close();
                self.test_fs.remount();
            }
            Op::Kill => {
                self.close();
                sync_all(self.root())?;
                self.close();
                self.test_fs.kill();
            }
            _ => return self.apply_to_contents(op),
        }
        DONE
    }

    fn apply_to_contents(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::Open { at, write, truncate } => {
                let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
                let truncate = if truncate { OFlags::TRUNC } else { OFlags::empty() };
                self.open(at, access | truncate)?;
                DONE
            }
            Op::Read { at, offset, len } => read(&self.open(at, OFlags::RDONLY)?, offset, len),
            Op::Write { at, offset, len, fill } => {
                write(&self.open(at, OFlags::WRONLY)?, Some(offset), &pattern(fill, offset, len))
            }
            Op::Append { at, len, fill } => {
                let file = self.open(at, OFlags::WRONLY | OFlags::APPEND)?;
                let size = file.metadata().map_err(errno)?.len();
                write(&file, None, &pattern(fill, size, len))
            }
            Op::Truncate { at, size } => {
                let path = CString::new(self.full(at).as_os_str().as_bytes()).unwrap();
                // SAFETY: the path is a NUL-terminated string that outlives the call.
                match unsafe { libc::truncate(path.as_ptr(), size as i64) } {
                    0 => DONE,
                    _ => Err(errno(std::io::Error::last_os_error())),
                }
            }
            Op::Allocate { at, how, offset, len } => {
                let file = self.open(at, OFlags::WRONLY)?;
                rustix::fs::fallocate(&file, allocate_flags(how), offset, len)?;
                DONE
            }
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                let source = self.open(from, OFlags::RDONLY)?;
                let target = self.open(to, OFlags::WRONLY)?;
                copy_range(&source, from_offset, &target, to_offset, len)
            }
            Op::Seek { at, offset, hole } => {
                let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
                count(rustix::fs::seek(&self.open(at, OFlags::RDONLY)?, from)?)
            }
            Op::Fsync { at, data_only } => sync(&self.open(at, OFlags::RDONLY)?, data_only),
            Op::Mapped { at, offset, len, fill, shared } => {
                let file = self.open(at, OFlags::RDWR)?;
                mapped(&file, offset, &pattern(fill, offset, len), shared)
            }
            Op::Stat { at, follow } => stat(&rustix::fs::statat(self.root(), expand(at), at_flags(follow))?),
            Op::ReadLink { at } => {
                Ok(Outcome::Bytes(rustix::fs::readlinkat(self.root(), expand(at), Vec::new())?.into_bytes()))
            }
            Op::List { at } => list(&self.open(at, OFlags::RDONLY | OFlags::DIRECTORY)?),
            _ => self.apply_to_attributes(op),
        }
    }

    fn apply_to_attributes(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::Chmod { at, mode } => {
                rustix::fs::chmodat(self.root(), expand(at), Mode::from_raw_mode(mode), AtFlags::empty())?;
            }
            Op::Chown { at, uid, gid, follow } => {
                let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
                rustix::fs::chownat(self.root(), expand(at), uid, gid, at_flags(follow))?;
            }
            Op::Utimes { at, mtime, follow } => {
                let last_modification = match mtime {
                    Stamp::Time(tv_sec, nanos) => Timespec { tv_sec, tv_nsec: nanos.into() },
                    Stamp::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                    Stamp::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                };
                // With both times left out, the kernel does not even look at the path.
                let last_access = Timespec { tv_sec: 1_234_567_890, tv_nsec: 0 };
                let times = Timestamps { last_access, last_modification };
                rustix::fs::utimensat(self.root(), expand(at), &times, at_flags(follow))?;
            }
            Op::SetXattr { at, name, len, fill, flag, follow } => {
                let value = xattr_value(name, fill, len);
                let flag = match flag {
                    XattrFlag::Either => XattrFlags::empty(),
                    XattrFlag::MustCreate => XattrFlags::CREATE,
                    XattrFlag::MustReplace => XattrFlags::REPLACE,
                };
                let set = if follow { rustix::fs::setxattr } else { rustix::fs::lsetxattr };
                set(self.full(at), name, &value, flag)?;
            }
            Op::GetXattr { at, name, room: 0, follow } => {
                let query = if follow { rustix::fs::getxattr_query } else { rustix::fs::lgetxattr_query };
                return count(query(self.full(at), name)?);
            }
            Op::GetXattr { at, name, room, follow } => {
                let path = self.full(at);
                let mut value = vec![0; room];
                let length = if follow {
                    rustix::fs::getxattr(path, name, &mut value)?
                } else {
                    rustix::fs::lgetxattr(path, name, &mut value)?
                };
                value.truncate(length);
                return Ok(Outcome::Bytes(value));
            }
            Op::ListXattrs { at, follow } => {
                let path = self.full(at);
                let mut names = vec![0; 4096];
                let length = if follow {
                    rustix::fs::listxattr(path, &mut names)?
                } else {
                    rustix::fs::llistxattr(path, &mut names)?
                };
                let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
                let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
                names.sort();
                return Ok(Outcome::Names(names));
            }
            Op::RemoveXattr { at, name, follow } => {
                let remove = if follow { rustix::fs::removexattr } else { rustix::fs::lremovexattr };
                remove(self.full(at), name)?;
            }
            _ => return self.apply_to_held(op),
        }
        DONE
    }

    fn apply_to_held(&mut self, op: &Op) -> OpResult {
        match *op {
            Op::Hold { slot, at, write } => {
                self.slots[slot] = None;
                let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
                self.slots[slot] = Some(Slot::Open(self.open(at, access)?, Vec::new()));
                DONE
            }
            Op::HoldMap { slot, at, write } => {
                self.slots[slot] = None;
                let file = self.open(at, if write { OFlags::RDWR } else { OFlags::RDONLY })?;
                let options = MmapOptions::new().len(MAP_LEN).clone();
                let map = if write { options.map_raw(&file) } else { options.map_raw_read_only(&file) };
                self.slots[slot] = Some(Slot::Map(map.map_err(errno)?));
                DONE
            }
            Op::HeldRead { slot, offset, len } => read(self.file(slot), offset, len),
            Op::HeldWrite { slot, offset, len, fill } => {
                write(self.file(slot), Some(offset), &pattern(fill, offset, len))
            }
            Op::HeldTruncate { slot, size } => {
                rustix::fs::ftruncate(self.file(slot), size)?;
                DONE
            }
            Op::HeldStat { slot } => stat(&rustix::fs::fstat(self.file(slot))?),
            Op::HeldSync { slot } => sync(self.file(slot), false),
            Op::HeldLink { slot, to } => {
                let from = format!("/proc/self/fd/{}", self.file(slot).as_raw_fd());
                rustix::fs::linkat(rustix::fs::CWD, from, self.root(), expand(to), AtFlags::SYMLINK_FOLLOW)?;
                DONE
            }
            Op::HeldList { slot } => list(self.file(slot)),
            Op::HeldListBegin { slot } => {
                let first = first_entries(self.file(slot))?;
                let Some(Slot::Open(_, listed)) = &mut self.slots[slot] else { unreachable!() };
                *listed = first;
                DONE
            }
            Op::HeldListEnd { slot } => {
                let Some(Slot::Open(file, listed)) = &mut self.slots[slot] else { unreachable!() };
                let mut found = std::mem::take(listed);
                read_entries(file, &mut found)?;
                entries_outcome(found)
            }
            Op::HeldMkdir { slot, name } => {
                rustix::fs::mkdirat(self.file(slot), expand(name), Mode::from_raw_mode(0o755))?;
                DONE
            }
            Op::HeldMapLoad { slot, offset, len } => load(self.map(slot), offset, len).map(Outcome::Bytes),
            Op::HeldMapStore { slot, offset, len, fill } => {
                store(self.map(slot), offset, &pattern(fill, offset, len))?;
                DONE
            }
            Op::Release { slot } => {
                self.slots[slot] = None;
                DONE
            }
            _ => unreachable!("{op:?} is nobody's"),
        }
    }

    fn file(&self, slot: usize) -> &File {
        match &self.slots[slot] {
            Some(Slot::Open(file, _)) => file,
            _ => panic!("slot {slot} holds no descriptor"),
        }
    }

    fn map(&self, slot: usize) -> &MmapRaw {
        match &self.slots[slot] {
            Some(Slot::Map(map)) => map,
            _ => panic!("slot {slot} holds no mapping"),
        }
    }
}

fn read(file: &File, offset: u64, len: usize) -> OpResult {
    let mut bytes = vec![0; len];
    let mut got = 0;
    loop {
        match file.read_at(&mut bytes[got..], offset + got as u64).map_err(errno)? {
            0 => break,
            more => got += more,
        }
    }
    bytes.truncate(got);
    Ok(Outcome::Bytes(bytes))
}

/// At an offset, or at the end.
fn write(mut file: &File, offset: Option<u64>, bytes: &[u8]) -> OpResult {
    let written = match offset {
        Some(offset) => file.write_at(bytes, offset),
        None => file.write(bytes),
    };
    count(written.map_err(errno)?)
}

fn sync(file: &File, data_only: bool) -> OpResult {
    let done = if data_only { file.sync_data() } else { file.sync_all() };
    done.map(|()| Outcome::Done).map_err(errno)
}

fn allocate_flags(how: Alloc) -> FallocateFlags {
    match how {
        Alloc::Plain => FallocateFlags::empty(),
        Alloc::KeepSize => FallocateFlags::KEEP_SIZE,
        Alloc::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Alloc::ZeroRange => FallocateFlags::ZERO_RANGE,
        Alloc::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        Alloc::Collapse => FallocateFlags::COLLAPSE_RANGE,
        Alloc::Insert => FallocateFlags::INSERT_RANGE,
    }
}

/// What one call would copy if it copied all it may: within one file, the copy must not be copied on.
fn copy_range(source: &File, mut from: u64, target: &File, mut to: u64, len: u64) -> OpResult {
    let goal = len.min(source.metadata().map_err(errno)?.len().saturating_sub(from));
    let (mut copied, mut ask) = (0, len);
    loop {
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), ask as usize)? {
            0 => return count(copied),
            more => copied += more as u64,
        }
        if copied >= goal {
            return count(copied);
        }
        ask = goal - copied;
    }
}

fn mapped(file: &File, offset: u64, bytes: &[u8], shared: bool) -> OpResult {
    let mut options = MmapOptions::new();
    options.len(MAP_LEN);
    if shared {
        let map = options.map_raw(file).map_err(errno)?;
        store(&map, offset, bytes)?;
        return load(&map, offset, bytes.len()).map(Outcome::Bytes);
    }
    // SAFETY: nobody else changes the file while it is mapped here: runs have their own places and one thread.
    let map = MmapRaw::from(unsafe { options.map_copy(file) }.map_err(errno)?);
    store(&map, offset, bytes)?;
    load(&map, offset, bytes.len()).map(Outcome::Bytes)
}

/// Reads a mapping through a pipe: a page that is not there is an error of the call then, and not the end of all tests.
fn load(map: &MmapRaw, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    assert!(offset as usize + len <= map.len());
    let (mut reader, mut writer) = std::io::pipe().map_err(errno)?;
    let mut bytes = Vec::new();
    for at in (0..len).step_by(4096) {
        let size = 4096.min(len - at);
        // SAFETY: the range lies in the mapping, and only the kernel reads it, which minds missing pages.
        let piece = unsafe { std::slice::from_raw_parts(map.as_ptr().add(offset as usize + at), size) };
        writer.write_all(piece).map_err(errno)?;
        let mut buffer = vec![0; size];
        reader.read_exact(&mut buffer).map_err(errno)?;
        bytes.extend(buffer);
    }
    Ok(bytes)
}

/// Writes to a mapping through a pipe, likewise.
fn store(map: &MmapRaw, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    assert!(offset as usize + bytes.len() <= map.len());
    let (mut reader, mut writer) = std::io::pipe().map_err(errno)?;
    for (number, piece) in bytes.chunks(4096).enumerate() {
        writer.write_all(piece).map_err(errno)?;
        let at = offset as usize + number * 4096;
        // SAFETY: the range lies in the writable mapping, which nothing else in this process refers to.
        let target = unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().add(at), piece.len()) };
        reader.read_exact(target).map_err(errno)?;
    }
    Ok(())
}

fn stat(stat: &rustix::fs::Stat) -> OpResult {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let rdev = if device { (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) } else { (0, 0) };
    Ok(Outcome::Stat(Box::new(Record {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == FileType::Directory { 0 } else { stat.st_size as u64 },
        rdev,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        nlink: stat.st_nlink,
        ino: stat.st_ino,
        target: None,
        xattrs: Default::default(),
        hash: None,
    })))
}

type Listed = Vec<(CString, FileType)>;

fn take_entry(entry: &RawDirEntry<'_>, into: &mut Listed) {
    if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
        into.push((entry.file_name().to_owned(), entry.file_type()));
    }
}

/// Reads entries from the descriptor's own offset to the end, with a small buffer, and returns the kernel's error for a
/// removed directory.
fn read_entries(dir: &impl AsFd, into: &mut Listed) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    while let Some(entry) = raw.next() {
        take_entry(&entry?, into);
    }
    Ok(())
}

/// What fits in the smallest buffer that takes every name.
fn first_entries(dir: &impl AsFd) -> Result<Listed, Errno> {
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 288];
    let (mut raw, mut found) = (RawDir::new(dir, &mut buffer), Vec::new());
    while let Some(entry) = raw.next() {
        take_entry(&entry?, &mut found);
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(found)
}

fn entries(dir: &impl AsFd) -> Result<Listed, Errno> {
    let mut found = Vec::new();
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    read_entries(dir, &mut found)?;
    Ok(found)
}

fn entries_outcome(found: Listed) -> OpResult {
    let mut found: Vec<_> = found.into_iter().map(|(name, kind)| (name.into_bytes(), kind.as_raw_mode())).collect();
    found.sort();
    Ok(Outcome::Entries(found))
}

fn list(dir: &File) -> OpResult {
    entries_outcome(entries(dir)?)
}

fn open_dir(dir: &impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn remove_all(dir: &impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
    let below = open_dir(dir, name)?;
    for (name, _) in entries(&below)? {
        remove_all(&below, name.to_bytes())?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Every regular file, one by one: a sync of a whole FUSE file system waits for nothing.
fn sync_all(dir: &impl AsFd) -> Result<(), Errno> {
    for (name, kind) in entries(&open_dir(dir, b".")?)? {
        match kind {
            FileType::Directory => sync_all(&open_dir(dir, name.to_bytes())?)?,
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::fsync(rustix::fs::openat(dir, &name, flags, Mode::empty())?)?;
            }
            _ => {}
        }
    }
    Ok(())
}

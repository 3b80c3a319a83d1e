//! A directory tree as the source of a copy: read through descriptors, a directory before its entries, names sorted.

use super::super::rootfs::reopen;
use super::error::{Result, failed};
use super::{Content, LOOK, Object, Sink};
use crate::backing::{Backing, Disk};
use crate::layer::Meta;
use crate::meta::{Kind, PERMISSION_BITS, Time, device};
use rustix::fs::{Stat, major, minor};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Whether a copy includes this extended attribute: `user.*` and file capabilities.
pub(super) fn is_copied(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.") || attribute == b"security.capability"
}

/// A directory that is being read.
struct Level {
    directory: OwnedFd,
    path: Vec<u8>,
    /// The entries left, in reverse order.
    names: Vec<Vec<u8>>,
}

struct Walk<'s> {
    sink: &'s mut dyn Sink,
    /// The first path of each object with several hard links, by device and inode.
    first: HashMap<(u64, u64), Vec<u8>>,
}

/// Puts an object, named `path`, and everything below it into a sink.
pub(super) fn walk(object: OwnedFd, path: &[u8], sink: &mut dyn Sink) -> Result<()> {
    let mut walk = Walk { sink, first: HashMap::new() };
    let mut levels = Vec::from_iter(walk.emit(object, path.to_vec())?);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = if level.path.is_empty() { name.clone() } else { [&level.path[..], b"/", &name].concat() };
        let found = match Disk.open(level.directory.as_fd(), &name, LOOK, 0) {
            Ok(found) => found,
            // Removed since the directory was listed.
            Err(e) if is_gone(&e) => continue,
            Err(e) => return Err(failed("open", &path)(e)),
        };
        levels.extend(walk.emit(found, path)?);
    }
    Ok(())
}

/// Whether an error means that the object was removed meanwhile: programs in the tree may be running.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::STALE)
}

impl Walk<'_> {
    fn emit(&mut self, object: OwnedFd, path: Vec<u8>) -> Result<Option<Level>> {
        let fd = object.as_fd();
        let stat = rustix::fs::fstat(fd).map_err(|e| failed("stat", &path)(e.into()))?;
        let identity = (stat.st_dev, stat.st_ino);
        let kind = Kind::of(stat.st_mode);
        if kind == Some(Kind::Dir) {
            let meta = meta(fd, &stat, &path)?;
            if self.sink.is_target(identity) {
                return Ok(None);
            }
            self.sink.put(&path, &meta, Object::Dir)?;
            let mut names: Vec<_> = match Disk.list(fd) {
                Err(e) if is_gone(&e) => Vec::new(),
                list => list.map_err(failed("read", &path))?.into_iter().map(|e| e.name).collect(),
            };
            names.sort_unstable_by(|a, b| b.cmp(a));
            return Ok(Some(Level { directory: object, path, names }));
        }
        // Sockets are skipped: they are useless without their listener, and tar cannot store them.
        if matches!(kind, None | Some(Kind::Socket)) {
            return Ok(None);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.first.get(&identity) {
                let meta = meta(fd, &stat, &path)?;
                self.sink.put(&path, &meta, Object::Link(first))?;
                return Ok(None);
            }
            self.first.insert(identity, path.clone());
        }
        self.emit_leaf(fd, kind, &stat, &path)?;
        Ok(None)
    }

    fn emit_leaf(&mut self, fd: BorrowedFd, kind: Option<Kind>, stat: &Stat, path: &[u8]) -> Result<()> {
        let meta = meta(fd, stat, path)?;
        match kind {
            Some(Kind::File) => {
                let file = match reopen(fd) {
                    Err(e) if is_gone(&e) => return Ok(()),
                    file => file.map_err(failed("open", path))?,
                };
                let size = stat.st_size as u64;
                let pieces = pieces(&file, size);
                let mut data = Pieces { file: &file, pieces: &pieces, at: 0 };
                self.sink.put(path, &meta, Object::File(Content { size, pieces: pieces.clone(), data: &mut data }))
            }
            Some(Kind::Symlink) => {
                let target = Disk.readlink(fd, b"").map_err(failed("read", path))?;
                self.sink.put(path, &meta, Object::Symlink(&target))
            }
            Some(kind @ (Kind::Char | Kind::Block)) => match device(major(stat.st_rdev), minor(stat.st_rdev)) {
                Some(number) => self.sink.put(path, &meta, Object::Device(kind, number)),
                None => Err(failed("copy", path)(Errno::OVERFLOW.into())),
            },
            Some(Kind::Fifo) => self.sink.put(path, &meta, Object::Fifo),
            Some(Kind::Socket | Kind::Dir) | None => Ok(()),
        }
    }
}

fn meta(fd: BorrowedFd, stat: &Stat, path: &[u8]) -> Result<Meta> {
    let mut xattrs = Vec::new();
    if Kind::of(stat.st_mode) != Some(Kind::Symlink) {
        let names = Disk.list_xattrs(fd).map_err(failed("read the attributes of", path))?;
        for name in names.split(|byte| *byte == 0).filter(|name| is_copied(name)) {
            let value = Disk.get_xattr(fd, name).map_err(failed("read the attributes of", path))?;
            xattrs.extend(value.map(|value| (name.to_vec(), value)));
        }
    }
    Ok(Meta {
        mode: stat.st_mode & PERMISSION_BITS,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 },
        xattrs,
    })
}

/// The data ranges (offset, length) of a sparse file; the whole file if its file system does not support `SEEK_DATA`.
fn pieces(file: &File, size: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match Disk.seek(file.as_fd(), at, false) {
            Ok(start) if (at..size).contains(&start) => start,
            Ok(_) => break,
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NXIO) => break,
            Err(_) => return vec![(0, size)],
        };
        let end = Disk.seek(file.as_fd(), start, true).map_or(size, |end| end.min(size));
        if end <= start {
            return vec![(0, size)];
        }
        found.push((start, end - start));
        at = end;
    }
    found
}

/// Reads a file's data ranges one after the other.
struct Pieces<'a> {
    file: &'a File,
    pieces: &'a [(u64, u64)],
    /// The number of bytes read of the first range.
    at: u64,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(((start, len), rest)) = self.pieces.split_first() {
            if self.at == *len {
                (self.pieces, self.at) = (rest, 0);
                continue;
            }
            let most = (len - self.at).min(into.len() as u64) as usize;
            let n = self.file.read_at(&mut into[..most], start + self.at)?;
            self.at += n as u64;
            return Ok(n);
        }
        Ok(0)
    }
}

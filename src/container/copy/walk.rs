//! A tree as a source: read by its descriptors, a directory before what is in it, names in order.

use super::super::inside::reopen;
use super::{Content, LOOK, Result, Sink, What, failed};
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

/// The attributes that go along: a user's own, and what a program may do.
pub(super) fn is_copied(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.") || attribute == b"security.capability"
}

/// A directory that is being read.
struct Level {
    directory: OwnedFd,
    path: Vec<u8>,
    /// What is still to come, the next one last.
    names: Vec<Vec<u8>>,
}

struct Walk<'s> {
    sink: &'s mut dyn Sink,
    /// Under which path an object with several names was given first.
    first: HashMap<(u64, u64), Vec<u8>>,
}

/// Gives an object, as `path`, and what is below it.
pub(super) fn walk(object: OwnedFd, path: &[u8], sink: &mut dyn Sink) -> Result<()> {
    let mut walk = Walk { sink, first: HashMap::new() };
    let mut levels = Vec::from_iter(walk.give(object, path.to_vec())?);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = if level.path.is_empty() { name.clone() } else { [&level.path[..], b"/", &name].concat() };
        let found = match Disk.open(level.directory.as_fd(), &name, LOOK, 0) {
            Ok(found) => found,
            // Gone since it was listed.
            Err(e) if is_gone(&e) => continue,
            Err(e) => return Err(failed("open", &path)(e)),
        };
        levels.extend(walk.give(found, path)?);
    }
    Ok(())
}

/// Whether an object was removed after it was found: whoever runs in the tree may go on.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::STALE)
}

impl Walk<'_> {
    fn give(&mut self, object: OwnedFd, path: Vec<u8>) -> Result<Option<Level>> {
        let fd = object.as_fd();
        let stat = rustix::fs::fstat(fd).map_err(|e| failed("stat", &path)(e.into()))?;
        let identity = (stat.st_dev, stat.st_ino);
        let kind = Kind::of(stat.st_mode);
        if kind == Some(Kind::Dir) {
            let meta = meta(fd, &stat, &path)?;
            if self.sink.is_target(identity) {
                return Ok(None);
            }
            self.sink.put(&path, &meta, What::Dir)?;
            let mut names: Vec<_> = match Disk.list(fd) {
                Err(e) if is_gone(&e) => Vec::new(),
                list => list.map_err(failed("read", &path))?.into_iter().map(|e| e.name).collect(),
            };
            names.sort_unstable_by(|a, b| b.cmp(a));
            return Ok(Some(Level { directory: object, path, names }));
        }
        // A socket is whoever listens at it, and a tar has none.
        if matches!(kind, None | Some(Kind::Socket)) {
            return Ok(None);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.first.get(&identity) {
                let meta = meta(fd, &stat, &path)?;
                self.sink.put(&path, &meta, What::Link(first))?;
                return Ok(None);
            }
            self.first.insert(identity, path.clone());
        }
        self.give_leaf(fd, kind, &stat, &path)?;
        Ok(None)
    }

    fn give_leaf(&mut self, fd: BorrowedFd, kind: Option<Kind>, stat: &Stat, path: &[u8]) -> Result<()> {
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
                self.sink.put(path, &meta, What::File(Content { size, pieces: pieces.clone(), data: &mut data }))
            }
            Some(Kind::Symlink) => {
                let target = Disk.readlink(fd, b"").map_err(failed("read", path))?;
                self.sink.put(path, &meta, What::Symlink(&target))
            }
            Some(kind @ (Kind::Char | Kind::Block)) => match device(major(stat.st_rdev), minor(stat.st_rdev)) {
                Some(number) => self.sink.put(path, &meta, What::Device(kind, number)),
                None => Err(failed("copy", path)(Errno::OVERFLOW.into())),
            },
            Some(Kind::Fifo) => self.sink.put(path, &meta, What::Fifo),
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

/// Where a file has data; all of it where its file system does not tell.
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

/// A file's pieces, one behind the other.
struct Pieces<'a> {
    file: &'a File,
    pieces: &'a [(u64, u64)],
    /// How much of the first piece has been read.
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

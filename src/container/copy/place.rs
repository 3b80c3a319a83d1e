//! A tree as a sink: objects are made in directories that are held open, by names, and no link is followed on the way.

use super::super::inside::Inside;
use super::walk::is_copied;
use super::{Content, CopyError, LOOK, Owner, Result, Sink, What, failed};
use crate::backing::{Backing, Disk};
use crate::layer::Meta;
use crate::meta::{Kind, Time};
use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const BUFFER: usize = 256 << 10;
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Makes what is copied, below one directory.
pub(super) struct Placer<'a> {
    base: OwnedFd,
    /// The directory's path, for messages and for links.
    path: Vec<u8>,
    owner: Owner,
    /// Whether the directory itself is copied too.
    with_root: bool,
    /// The root inside which links to directories are followed, if they are.
    links: Option<&'a Inside>,
    /// The directories that lead to what was made last, below `base`.
    open: Vec<(Vec<u8>, OwnedFd)>,
    /// Directories that get their attributes when all in them has been made.
    directories: Vec<(Vec<u8>, Meta)>,
    /// The first directory that was made.
    target: Option<(u64, u64)>,
    bytes: u64,
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

impl<'a> Placer<'a> {
    /// Below this directory, whose path is only told.
    pub(super) fn new(base: OwnedFd, path: &[u8], owner: Owner) -> Placer<'a> {
        Placer {
            base,
            path: path.to_vec(),
            owner,
            with_root: false,
            links: None,
            open: Vec::new(),
            directories: Vec::new(),
            target: None,
            bytes: 0,
        }
    }

    /// The directory gets the attributes of what is copied into it.
    pub(super) fn with_root(mut self) -> Placer<'a> {
        self.with_root = true;
        self
    }

    /// Where an object lies behind a link to a directory, that is followed, inside of the root.
    pub(super) fn through_links(mut self, root: &'a Inside) -> Placer<'a> {
        self.links = Some(root);
        self
    }

    /// Sets what directories are to have at the end. Gives how many bytes files had.
    pub(super) fn end(mut self) -> Result<u64> {
        for (path, meta) in std::mem::take(&mut self.directories).into_iter().rev() {
            let parts = parts(&path)?;
            let directory = self.enter(&parts, false)?;
            self.finish(directory.as_fd(), &meta, true).map_err(failed("set the attributes of", &self.told(&path)))?;
        }
        Ok(self.bytes)
    }

    fn told(&self, path: &[u8]) -> Vec<u8> {
        [self.path.strip_suffix(b"/").unwrap_or(&self.path), b"/", path].concat()
    }

    /// The directory at those names, made if it may be.
    fn enter(&mut self, names: &[&[u8]], make: bool) -> Result<OwnedFd> {
        let same = self.open.iter().zip(names).take_while(|((open, _), name)| open == *name).count();
        self.open.truncate(same);
        for (at, name) in names.iter().enumerate().skip(same) {
            let above = self.open.last().map_or(self.base.as_fd(), |(_, directory)| directory.as_fd());
            let path = names[..=at].join(&b'/');
            let found = match Disk.open(above, name, DIRECTORY, 0) {
                Err(e) if is(&e, Errno::NOENT) && make => {
                    self.make_directory(above, name, 0o755).and_then(|_| Disk.open(above, name, DIRECTORY, 0))
                }
                found => found,
            };
            let found = match (found, self.links) {
                (Err(e), Some(root)) if is(&e, Errno::NOTDIR) => root.open_dir(OsStr::from_bytes(&self.told(&path))),
                (found, _) => found,
            };
            let found = found.map_err(|e| match is(&e, Errno::NOTDIR) {
                true => CopyError::InTheWay { path: self.told(&path), directory: false },
                false => failed("open", &self.told(&path))(e),
            })?;
            self.open.push((name.to_vec(), found));
        }
        let found = self.open.last().map_or(self.base.as_fd(), |(_, directory)| directory.as_fd());
        found.try_clone_to_owned().map_err(failed("open", &self.path))
    }

    /// Makes a directory, the owner's as far as it can be; nothing if something is there.
    fn make_directory(&self, above: BorrowedFd, name: &[u8], mode: u32) -> io::Result<bool> {
        match Disk.mkdir(above, name, mode) {
            Ok(()) => {}
            Err(e) if is(&e, Errno::EXIST) => return Ok(false),
            Err(e) => return Err(e),
        }
        let made = Disk.open(above, name, DIRECTORY, 0)?;
        if let Owner::Is(uid, gid) = self.owner {
            self.give(made.as_fd(), uid, gid)?;
        }
        Disk.chmod(made.as_fd(), mode)?;
        Ok(true)
    }

    /// Who is not root owns what he makes, and can give it to nobody.
    fn give(&self, object: BorrowedFd, uid: u32, gid: u32) -> io::Result<()> {
        match Disk.chown(object, Some(uid), Some(gid)) {
            Err(e) if is(&e, Errno::PERM) && !crate::sys::is_root() => Ok(()),
            done => done,
        }
    }

    /// Owner, then mode, which the first may change; then what a change of owner takes away; the time last.
    fn finish(&self, object: BorrowedFd, meta: &Meta, has_mode: bool) -> io::Result<()> {
        let (uid, gid) = match self.owner {
            Owner::Kept => (meta.uid, meta.gid),
            Owner::Is(uid, gid) => (uid, gid),
        };
        self.give(object, uid, gid)?;
        if has_mode {
            Disk.chmod(object, meta.mode)?;
            for (name, value) in meta.xattrs.iter().filter(|(name, _)| is_copied(name)) {
                match Disk.set_xattr(object, name, value, XattrFlags::empty()) {
                    // Where there are none, or a plain user may not give rights away, a copy goes without, as Docker's.
                    Err(e) if is(&e, Errno::OPNOTSUPP) || is(&e, Errno::PERM) => {}
                    done => done?,
                }
            }
        }
        let kept = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let Time { sec, nsec } = meta.mtime;
        let modified = Timespec { tv_sec: sec, tv_nsec: nsec.into() };
        Disk.utimens(object, &Timestamps { last_access: kept, last_modification: modified })
    }

    fn put_directory(&mut self, above: BorrowedFd, name: &[u8], path: &[u8], meta: &Meta) -> Result<()> {
        let told = self.told(path);
        let made = self.make_directory(above, name, 0o700).map_err(failed("make", &told))?;
        if !made {
            match Disk.open(above, name, DIRECTORY, 0) {
                Ok(_) => {}
                Err(e) if is(&e, Errno::NOTDIR) => return Err(CopyError::InTheWay { path: told, directory: false }),
                Err(e) => return Err(failed("open", &told)(e)),
            }
        } else if self.target.is_none() {
            let found = Disk.open(above, name, DIRECTORY, 0).and_then(|fd| Ok(rustix::fs::fstat(fd)?));
            let stat = found.map_err(failed("open", &told))?;
            self.target = Some((stat.st_dev, stat.st_ino));
        }
        self.directories.push((path.to_vec(), meta.clone()));
        Ok(())
    }

    /// Makes what is no directory, in place of what is there.
    fn put_leaf(&mut self, above: BorrowedFd, name: &[u8], told: &[u8], meta: &Meta, what: What<'_>) -> Result<()> {
        match Disk.unlink(above, name) {
            Ok(()) => {}
            Err(e) if is(&e, Errno::NOENT) => {}
            Err(e) if is(&e, Errno::ISDIR) => {
                return Err(CopyError::InTheWay { path: told.to_vec(), directory: true });
            }
            Err(e) => return Err(failed("replace", told)(e)),
        }
        let made = match what {
            What::File(content) => {
                self.bytes += content.size;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let made = Disk.open(above, name, flags, 0o600).map_err(failed("make", told))?;
                fill(made.as_fd(), content).map_err(failed("write", told))?;
                self.finish(made.as_fd(), meta, true).map_err(failed("set the attributes of", told))?;
                return Ok(());
            }
            What::Symlink(target) => Disk.symlink(target, above, name),
            What::Device(kind, number) => Disk.mknod(above, name, kind.bits() | 0o600, number),
            What::Fifo => Disk.mknod(above, name, Kind::Fifo.bits() | 0o600, 0),
            What::Dir | What::Link(_) => return Ok(()),
        };
        made.map_err(failed("make", told))?;
        // Whatever took its place meanwhile is in the same directory, and no link is followed to it.
        let made = Disk.open(above, name, LOOK, 0).map_err(failed("open", told))?;
        let stat = Disk.stat(made.as_fd()).map_err(failed("stat", told))?;
        let has_mode = Kind::of(stat.mode) != Some(Kind::Symlink);
        self.finish(made.as_fd(), meta, has_mode).map_err(failed("set the attributes of", told))
    }

    /// One more name of what was made before.
    fn put_link(&mut self, above: BorrowedFd, name: &[u8], path: &[u8], first: &[u8]) -> Result<()> {
        let names = parts(first)?;
        let told = self.told(path);
        let Some((last, around)) = names.split_last() else { return Err(CopyError::LeadsOut(first.to_vec())) };
        let around = self.enter(around, false)?;
        let object = Disk.open(around.as_fd(), last, LOOK, 0).map_err(failed("open", &self.told(first)))?;
        if names == parts(path)? {
            return Ok(());
        }
        match Disk.unlink(above, name) {
            Err(e) if is(&e, Errno::ISDIR) => Err(CopyError::InTheWay { path: told, directory: true }),
            Err(e) if !is(&e, Errno::NOENT) => Err(failed("replace", &told)(e)),
            _ => Disk.link(object.as_fd(), above, name).map_err(failed("link", &told)),
        }
    }
}

impl Sink for Placer<'_> {
    fn put(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Result<()> {
        let names = parts(path)?;
        let Some((name, around)) = names.split_last() else {
            return match what {
                What::Dir if self.with_root => {
                    self.directories.push((Vec::new(), meta.clone()));
                    Ok(())
                }
                What::Dir => Ok(()),
                _ => Err(CopyError::InTheWay { path: self.path.clone(), directory: true }),
            };
        };
        let above = self.enter(around, true)?;
        match what {
            What::Dir => self.put_directory(above.as_fd(), name, path, meta),
            What::Link(first) => self.put_link(above.as_fd(), name, path, first),
            what => self.put_leaf(above.as_fd(), name, &self.told(path), meta, what),
        }
    }

    fn is_target(&self, directory: (u64, u64)) -> bool {
        self.target == Some(directory)
    }
}

/// The names of a path; one that leads upwards is refused.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&&b".."[..]) { Err(CopyError::LeadsOut(path.to_vec())) } else { Ok(names) }
}

/// Writes a file's pieces where they belong; between them it has holes.
fn fill(file: BorrowedFd, content: Content<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(content.size as usize)];
    for (mut at, len) in content.pieces {
        let end = at + len;
        while at < end {
            let most = (end - at).min(buffer.len() as u64) as usize;
            let n = match content.data.read(&mut buffer[..most]) {
                // It has become shorter meanwhile: zeros take the place of what is lost.
                Ok(0) => return Disk.truncate(file, content.size),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let mut written = 0;
            while written < n {
                written += Disk.write(file, &buffer[written..n], at + written as u64)?;
            }
            at += n as u64;
        }
    }
    Disk.truncate(file, content.size)
}

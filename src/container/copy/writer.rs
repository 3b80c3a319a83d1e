//! A directory tree as the destination of a copy: creates objects by name in open directories, without following
//! symbolic links.

use super::super::rootfs::Rootfs;
use super::error::{CopyError, Result, failed};
use super::reader::is_copied;
use super::{Content, LOOK, Object, Owner, Sink};
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

/// A sink that creates objects below one directory.
pub(super) struct TreeWriter<'a> {
    base: OwnedFd,
    /// The directory's path, for messages and for [`TreeWriter::follow_links`].
    path: Vec<u8>,
    owner: Owner,
    /// Whether the directory itself gets the attributes of the source.
    with_root: bool,
    /// The root in which symbolic links to directories are resolved; `None`: they are not followed.
    links: Option<&'a Rootfs>,
    /// The open parent directories of the last object, below `base`.
    open: Vec<(Vec<u8>, OwnedFd)>,
    /// Directories whose attributes are set at the end, when their entries exist.
    directories: Vec<(Vec<u8>, Meta)>,
    /// The first created directory (device and inode).
    target: Option<(u64, u64)>,
    bytes: u64,
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

impl<'a> TreeWriter<'a> {
    /// Writes below the directory `base`; `path` is for messages.
    pub(super) fn new(base: OwnedFd, path: &[u8], owner: Owner) -> TreeWriter<'a> {
        TreeWriter {
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

    /// Also sets the attributes of the directory itself.
    pub(super) fn with_root(mut self) -> TreeWriter<'a> {
        self.with_root = true;
        self
    }

    /// Follows symbolic links to directories in the path of an object, resolved inside `root`.
    pub(super) fn follow_links(mut self, root: &'a Rootfs) -> TreeWriter<'a> {
        self.links = Some(root);
        self
    }

    /// Sets the attributes of directories. Returns the total size of the files in bytes.
    pub(super) fn end(mut self) -> Result<u64> {
        for (path, meta) in std::mem::take(&mut self.directories).into_iter().rev() {
            let parts = parts(&path)?;
            let directory = self.enter(&parts, false)?;
            self.finish(directory.as_fd(), &meta, true)
                .map_err(failed("set the attributes of", &self.full_path(&path)))?;
        }
        Ok(self.bytes)
    }

    fn full_path(&self, path: &[u8]) -> Vec<u8> {
        [self.path.strip_suffix(b"/").unwrap_or(&self.path), b"/", path].concat()
    }

    /// Opens the directory at `names`; creates missing ones if `make` is set.
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
                (Err(e), Some(root)) if is(&e, Errno::NOTDIR) => {
                    root.open_dir(OsStr::from_bytes(&self.full_path(&path)))
                }
                (found, _) => found,
            };
            let found = found.map_err(|e| match is(&e, Errno::NOTDIR) {
                true => CopyError::InTheWay { path: self.full_path(&path), directory: false },
                false => failed("open", &self.full_path(&path))(e),
            })?;
            self.open.push((name.to_vec(), found));
        }
        let found = self.open.last().map_or(self.base.as_fd(), |(_, directory)| directory.as_fd());
        found.try_clone_to_owned().map_err(failed("open", &self.path))
    }

    /// Creates a directory with the configured owner. Returns false if the name exists.
    fn make_directory(&self, above: BorrowedFd, name: &[u8], mode: u32) -> io::Result<bool> {
        match Disk.mkdir(above, name, mode) {
            Ok(()) => {}
            Err(e) if is(&e, Errno::EXIST) => return Ok(false),
            Err(e) => return Err(e),
        }
        let made = Disk.open(above, name, DIRECTORY, 0)?;
        if let Owner::Is(uid, gid) = self.owner {
            self.chown(made.as_fd(), uid, gid)?;
        }
        Disk.chmod(made.as_fd(), mode)?;
        Ok(true)
    }

    /// Changes the owner. Ignores `EPERM` for an unprivileged user, who cannot change owners.
    fn chown(&self, object: BorrowedFd, uid: u32, gid: u32) -> io::Result<()> {
        match Disk.chown(object, Some(uid), Some(gid)) {
            Err(e) if is(&e, Errno::PERM) && !crate::sys::is_root() => Ok(()),
            done => done,
        }
    }

    /// Sets the attributes: first the owner, as chown(2) clears set-ID bits and file capabilities; then mode, extended
    /// attributes and modification time.
    fn finish(&self, object: BorrowedFd, meta: &Meta, has_mode: bool) -> io::Result<()> {
        let (uid, gid) = match self.owner {
            Owner::Kept => (meta.uid, meta.gid),
            Owner::Is(uid, gid) => (uid, gid),
        };
        self.chown(object, uid, gid)?;
        if has_mode {
            Disk.chmod(object, meta.mode)?;
            for (name, value) in meta.xattrs.iter().filter(|(name, _)| is_copied(name)) {
                match Disk.set_xattr(object, name, value, XattrFlags::empty()) {
                    // Unsupported by the file system, or a file capability as an unprivileged user: skipped, as by
                    // Docker.
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
        let shown_path = self.full_path(path);
        let made = self.make_directory(above, name, 0o700).map_err(failed("make", &shown_path))?;
        if !made {
            match Disk.open(above, name, DIRECTORY, 0) {
                Ok(_) => {}
                Err(e) if is(&e, Errno::NOTDIR) => {
                    return Err(CopyError::InTheWay { path: shown_path, directory: false });
                }
                Err(e) => return Err(failed("open", &shown_path)(e)),
            }
        } else if self.target.is_none() {
            let found = Disk.open(above, name, DIRECTORY, 0).and_then(|fd| Ok(rustix::fs::fstat(fd)?));
            let stat = found.map_err(failed("open", &shown_path))?;
            self.target = Some((stat.st_dev, stat.st_ino));
        }
        self.directories.push((path.to_vec(), meta.clone()));
        Ok(())
    }

    /// Creates an object other than a directory, replacing an existing one.
    fn put_leaf(
        &mut self,
        above: BorrowedFd,
        name: &[u8],
        shown_path: &[u8],
        meta: &Meta,
        what: Object<'_>,
    ) -> Result<()> {
        match Disk.unlink(above, name) {
            Ok(()) => {}
            Err(e) if is(&e, Errno::NOENT) => {}
            Err(e) if is(&e, Errno::ISDIR) => {
                return Err(CopyError::InTheWay { path: shown_path.to_vec(), directory: true });
            }
            Err(e) => return Err(failed("replace", shown_path)(e)),
        }
        let made = match what {
            Object::File(content) => {
                self.bytes += content.size;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let made = Disk.open(above, name, flags, 0o600).map_err(failed("make", shown_path))?;
                fill(made.as_fd(), content).map_err(failed("write", shown_path))?;
                self.finish(made.as_fd(), meta, true).map_err(failed("set the attributes of", shown_path))?;
                return Ok(());
            }
            Object::Symlink(target) => Disk.symlink(target, above, name),
            Object::Device(kind, number) => Disk.mknod(above, name, kind.bits() | 0o600, number),
            Object::Fifo => Disk.mknod(above, name, Kind::Fifo.bits() | 0o600, 0),
            Object::Dir | Object::Link(_) => return Ok(()),
        };
        made.map_err(failed("make", shown_path))?;
        // If the name was replaced meanwhile, this opens the new object in the same directory, following no link.
        let made = Disk.open(above, name, LOOK, 0).map_err(failed("open", shown_path))?;
        let stat = Disk.stat(made.as_fd()).map_err(failed("stat", shown_path))?;
        let has_mode = Kind::of(stat.mode) != Some(Kind::Symlink);
        self.finish(made.as_fd(), meta, has_mode).map_err(failed("set the attributes of", shown_path))
    }

    /// Creates a hard link to an object created before.
    fn put_link(&mut self, above: BorrowedFd, name: &[u8], path: &[u8], first: &[u8]) -> Result<()> {
        let names = parts(first)?;
        let shown_path = self.full_path(path);
        let Some((last, around)) = names.split_last() else { return Err(CopyError::LeadsOut(first.to_vec())) };
        let around = self.enter(around, false)?;
        let object = Disk.open(around.as_fd(), last, LOOK, 0).map_err(failed("open", &self.full_path(first)))?;
        if names == parts(path)? {
            return Ok(());
        }
        match Disk.unlink(above, name) {
            Err(e) if is(&e, Errno::ISDIR) => Err(CopyError::InTheWay { path: shown_path, directory: true }),
            Err(e) if !is(&e, Errno::NOENT) => Err(failed("replace", &shown_path)(e)),
            _ => Disk.link(object.as_fd(), above, name).map_err(failed("link", &shown_path)),
        }
    }
}

impl Sink for TreeWriter<'_> {
    fn put(&mut self, path: &[u8], meta: &Meta, what: Object<'_>) -> Result<()> {
        let names = parts(path)?;
        let Some((name, around)) = names.split_last() else {
            return match what {
                Object::Dir if self.with_root => {
                    self.directories.push((Vec::new(), meta.clone()));
                    Ok(())
                }
                Object::Dir => Ok(()),
                _ => Err(CopyError::InTheWay { path: self.path.clone(), directory: true }),
            };
        };
        let above = self.enter(around, true)?;
        match what {
            Object::Dir => self.put_directory(above.as_fd(), name, path, meta),
            Object::Link(first) => self.put_link(above.as_fd(), name, path, first),
            what => self.put_leaf(above.as_fd(), name, &self.full_path(path), meta, what),
        }
    }

    fn is_target(&self, directory: (u64, u64)) -> bool {
        self.target == Some(directory)
    }
}

/// Splits a path into names. Fails if one is `..`.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&&b".."[..]) { Err(CopyError::LeadsOut(path.to_vec())) } else { Ok(names) }
}

/// Writes a file's data ranges at their offsets, with holes between them.
fn fill(file: BorrowedFd, content: Content<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(content.size as usize)];
    for (mut at, len) in content.pieces {
        let end = at + len;
        while at < end {
            let most = (end - at).min(buffer.len() as u64) as usize;
            let n = match content.data.read(&mut buffer[..most]) {
                // The source was truncated meanwhile: the rest is zeros.
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

//! A lower directory (`lowerdir=`): one layer of a mount that is an unpacked directory. Read on demand, never written.
//!
//! No access leaves the directory, whatever symbolic links it contains: directories are opened below the root without
//! following any (openat2(2), RESOLVE_BENEATH), and everything else as one component of an open directory. If
//! permitted, the layer is accessed through a private mount (a clone), which is read-only, updates no access times and
//! excludes file systems that are mounted over the layer.

use crate::backing::{Backing, Handle, Object, Raw, ReadOnly, share};
use crate::meta::Kind;
use crate::sys;
use crate::whiteout::{self, Mark, Marker, all_names, first_of};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The longest path that one call accepts, with its NUL.
const PATH_MAX: usize = 4096;

/// A lower directory.
pub struct DirLayer {
    root: OwnedFd,
    /// The attribute that holds owner, mode and kind; set if the root has it.
    overrides: Option<&'static CStr>,
}

/// The content of a directory in a layer.
pub struct Contents {
    /// Its entries, each name once; whiteout markers are already interpreted.
    pub entries: Vec<Entry>,
    /// Whether it is opaque.
    pub opaque: bool,
    /// Its redirect: the path of the lower directory from the root, or a name in the same directory.
    pub redirect: Option<Vec<u8>>,
    /// The device number of its file system (`st_dev`).
    pub dev: u64,
}

/// A directory entry.
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The inode number on the layer's file system.
    pub ino: u64,
    /// The kind; `None` for a whiteout.
    pub kind: Option<Kind>,
    /// Whether a whiteout of the same name exists: a directory is then opaque.
    pub opaque: bool,
}

impl DirLayer {
    /// Opens a layer.
    pub fn open(path: &Path) -> io::Result<DirLayer> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let given = rustix::fs::open(path, flags, Mode::empty())?;
        let root = sys::quiet_copy(&given).unwrap_or(given);
        let top = open_here(root.as_fd())?;
        let overrides = whiteout::override_of(|name| ReadOnly.get_xattr(top.as_fd(), name.to_bytes()))?;
        Ok(DirLayer { root, overrides })
    }

    /// Returns the root, for queries about its file system.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory by its path relative to the root, whose path is empty.
    pub fn open_dir(&self, path: &[u8]) -> io::Result<Handle> {
        if path.is_empty() {
            return open_here(self.root.as_fd()).map(share);
        }
        if path.len() < PATH_MAX {
            return open_beneath(self.root.as_fd(), path).map(share);
        }
        let mut at = self.root.try_clone()?;
        for part in path.split(|b| *b == b'/') {
            at = open_beneath(at.as_fd(), part)?;
        }
        Ok(share(at))
    }

    /// Reads a directory that [`DirLayer::open_dir`] opened.
    pub fn read_dir(&self, dir: BorrowedFd) -> io::Result<Contents> {
        let marks = Marks::of(dir)?;
        let mut contents = Contents {
            entries: Vec::new(),
            opaque: marks.opaque.as_deref() == Some(b"y"),
            redirect: marks.redirect,
            dev: ReadOnly.stat(dir)?.dev,
        };
        let mixed = marks.opaque.as_deref() == Some(b"x");
        let mut hidden = HashSet::new();
        for listed in ReadOnly.list(dir)? {
            let is_numbered = || Ok::<_, io::Error>(mark_at(dir, &listed.name, Mark::Id)?.is_some());
            match whiteout::marker(&listed.name, listed.kind, is_numbered)? {
                Some(Marker::Opaque) => contents.opaque = true,
                Some(Marker::Whiteout(name)) => drop(hidden.insert(name.to_vec())),
                Some(Marker::Reserved) => {}
                Some(Marker::Plain) | None => {
                    let kind = self.kind(dir, &listed.name, listed.kind, mixed)?;
                    contents.entries.push(Entry { name: listed.name, ino: listed.ino, kind, opaque: false });
                }
            }
        }
        // A whiteout hides lower layers only: an entry of the same name beside it is visible.
        if !hidden.is_empty() {
            contents.entries.iter_mut().for_each(|entry| entry.opaque = hidden.remove(&entry.name));
        }
        contents.entries.extend(hidden.into_iter().map(|name| Entry { name, ino: 0, kind: None, opaque: true }));
        Ok(contents)
    }

    /// Returns the kind of an entry; `None` for a whiteout.
    fn kind(&self, dir: BorrowedFd, name: &[u8], listed: Option<Kind>, mixed: bool) -> io::Result<Option<Kind>> {
        let sure = match listed {
            Some(Kind::Char) | None => false,
            Some(Kind::File) => self.overrides.is_none() && !mixed,
            Some(_) => true,
        };
        if sure {
            return Ok(listed);
        }
        let object = self.object_at(dir, name)?;
        let whiteout = match object.kind {
            Kind::Char => !object.overridden && whiteout::is_whiteout_device(object.rdev),
            Kind::File if mixed && object.raw.size == 0 => mark_at(dir, name, Mark::Whiteout)?.is_some(),
            _ => false,
        };
        Ok((!whiteout).then_some(object.kind))
    }

    /// Returns the attributes of a directory's entry.
    pub fn object_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Object> {
        self.see(ReadOnly.stat_at(dir, name)?, |said| ReadOnly.get_xattr_at(dir, name, said))
    }

    /// Returns the attributes of an open directory.
    pub fn object(&self, dir: BorrowedFd) -> io::Result<Object> {
        self.see(ReadOnly.stat(dir)?, |said| ReadOnly.get_xattr(dir, said.to_bytes()))
    }

    fn see(&self, raw: Raw, read: impl FnOnce(&CStr) -> io::Result<Option<Vec<u8>>>) -> io::Result<Object> {
        let said = self.overrides.map_or(Ok(None), read)?;
        Object::seen(raw, said)
    }

    /// Opens a file for reading. Anything else in its place, such as a FIFO, is refused without blocking.
    pub fn open_file(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Handle> {
        ReadOnly.open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, 0).map(share)
    }

    /// Returns where the data of an open metacopy is: `Some(None)` for the same path in the lower layers,
    /// `Some(Some(path))` for a redirect. `None` for a file with its own data.
    pub fn data_elsewhere(&self, file: BorrowedFd) -> io::Result<Option<Option<Vec<u8>>>> {
        let listed = ReadOnly.list_xattrs(file)?;
        if !has_any(&listed, Mark::Metacopy) {
            return Ok(None);
        }
        mark(Mark::Redirect, |name| ReadOnly.get_xattr(file, name.to_bytes())).map(Some)
    }

    /// Returns the target of a symbolic link, in either form.
    pub fn readlink_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<Vec<u8>> {
        let object = self.object_at(dir, name)?;
        if !object.overridden {
            return ReadOnly.readlink(dir, name);
        }
        let file = self.open_file(dir, name)?;
        ReadOnly.read_most(file.as_fd(), 0, object.raw.size.min(PATH_MAX as u64) as usize)
    }
}

/// The name of an extended attribute that users see.
pub struct StoredName {
    /// The name on disk.
    pub stored: Vec<u8>,
    /// The name in the mount.
    pub shown: Vec<u8>,
}

/// Filters and translates the attribute names of a layer's object, each of which is followed by a NUL.
pub fn shown_names(stored: &[u8]) -> Vec<StoredName> {
    let names = stored.split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .filter_map(|name| Some(StoredName { stored: name.to_vec(), shown: whiteout::shown_in_layer(name)? }))
        .collect()
}

/// The marks of a directory.
struct Marks {
    opaque: Option<Vec<u8>>,
    redirect: Option<Vec<u8>>,
}

impl Marks {
    /// Reads the marks. Most directories have no attributes, which one call tells.
    fn of(dir: BorrowedFd) -> io::Result<Marks> {
        let listed = ReadOnly.list_xattrs(dir)?;
        let one = |wanted: Mark| match has_any(&listed, wanted) {
            true => mark(wanted, |name| ReadOnly.get_xattr(dir, name.to_bytes())),
            false => Ok(None),
        };
        Ok(Marks { opaque: one(Mark::Opaque)?, redirect: one(Mark::Redirect)? })
    }
}

fn has_any(listed: &[u8], mark: Mark) -> bool {
    !listed.is_empty() && listed.split(|b| *b == 0).any(|name| all_names(mark).iter().any(|one| one.to_bytes() == name))
}

fn mark_at(dir: BorrowedFd, entry: &[u8], wanted: Mark) -> io::Result<Option<Vec<u8>>> {
    mark(wanted, |name| ReadOnly.get_xattr_at(dir, entry, name))
}

fn mark(mark: Mark, read: impl Fn(&CStr) -> io::Result<Option<Vec<u8>>>) -> io::Result<Option<Vec<u8>>> {
    Ok(first_of(all_names(mark).iter().copied(), read)?.map(|(_, value)| value))
}

/// Opens a directory for listing that is open with O_PATH.
fn open_here(dir: BorrowedFd) -> io::Result<OwnedFd> {
    open_beneath(dir, b".")
}

fn open_beneath(dir: BorrowedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |flags| rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    let directory = OFlags::RDONLY | OFlags::DIRECTORY;
    match open(directory | OFlags::NOATIME) {
        // Only the owner may use O_NOATIME.
        Err(Errno::PERM) => Ok(open(directory)?),
        // A directory without read permission: its entries cannot be listed, but can be opened by name.
        Err(Errno::ACCESS) => Ok(open(OFlags::PATH | OFlags::DIRECTORY)?),
        opened => Ok(opened?),
    }
}

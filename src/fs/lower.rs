//! The lower side of a union: an image's merged index, or lower directories merged on demand. It is read-only.

use super::image::{self, Image};
use super::lower_types::{Attributes, Item, Name, Piece};
use super::lowerdirs::{self, LowerDirs};
use super::readdir::{DirEntry, FIRST, dots};
use super::{Attr, FsError, Ino, Statfs};
use crate::layer::{Dirent, Index, IndexError};
use crate::meta::Kind;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The merged lower layers.
pub enum Lower {
    Image(Image),
    LowerDirs(LowerDirs),
}

/// A directory's entries, sorted by name. Their offsets are stable for the life of the mount.
pub enum Listing<'a> {
    Image(&'a Index, &'a [Dirent]),
    LowerDirs(Arc<lowerdirs::Dir>),
}

impl Listing<'_> {
    pub fn len(&self) -> usize {
        match self {
            Listing::Image(_, entries) => entries.len(),
            Listing::LowerDirs(dir) => dir.entries().len(),
        }
    }

    pub fn get(&self, at: usize) -> Result<Item<'_>, FsError> {
        match self {
            Listing::Image(index, entries) => {
                let kind = entries[at].kind().ok_or(IndexError::Damaged("an entry has no file type"))?;
                Ok(Item { name: index.name(&entries[at])?, ino: image::number(entries[at].node.get()), kind })
            }
            Listing::LowerDirs(dir) => Ok(dir.entries().get(at)),
        }
    }

    /// Returns the entries from an offset on, with their offsets.
    pub fn from(&self, at: usize) -> impl Iterator<Item = Result<(usize, Item<'_>), FsError>> {
        (at.min(self.len())..self.len()).map(|at| Ok((at, self.get(at)?)))
    }
}

impl Lower {
    /// Returns the image's merged index; `None` for lower directories.
    pub fn index(&self) -> Option<&Index> {
        match self {
            Lower::Image(image) => Some(&image.tree),
            Lower::LowerDirs(_) => None,
        }
    }

    /// Whether the inode number is known and belongs to the lower layers.
    pub fn has(&self, ino: Ino) -> bool {
        match self {
            Lower::Image(image) => image.has(ino),
            Lower::LowerDirs(dirs) => dirs.has(ino),
        }
    }

    /// Whether an object of the upper directory that carries a lower inode's number can be the copy-up of that inode.
    /// For an image this is certain. Lower directories may have been replaced since, so there no visible inode may have
    /// the number already.
    pub fn accepts(&self, ino: Ino, kind: Kind) -> bool {
        match self {
            Lower::Image(image) => image.has(ino) && image.kind(ino).is_ok_and(|found| found == kind),
            Lower::LowerDirs(dirs) => dirs.accepts(ino, kind),
        }
    }

    /// Loads all directories, so that every inode is known.
    pub fn load_all(&self) -> Result<(), FsError> {
        match self {
            Lower::Image(_) => Ok(()),
            Lower::LowerDirs(dirs) => dirs.load_all(),
        }
    }

    /// Returns the attributes of an inode that is known only by its number.
    pub fn by_number(&self, ino: Ino) -> Result<Attr, FsError> {
        if !self.has(ino) {
            self.load_all()?;
        }
        self.getattr(ino)
    }

    /// Returns an inode's generation, which distinguishes it from inodes with the same number in other mounts.
    pub fn generation(&self, ino: Ino) -> u32 {
        match self {
            // An image never reuses an inode number.
            Lower::Image(_) => 0,
            Lower::LowerDirs(dirs) => dirs.generation(ino),
        }
    }

    /// Whether every directory reports a link count of 1.
    pub fn has_static_nlink(&self) -> bool {
        match self {
            Lower::Image(_) => false,
            Lower::LowerDirs(dirs) => dirs.has_static_nlink(),
        }
    }

    /// Whether lower inode numbers that upper directories carry are persistent.
    pub fn is_certain(&self) -> bool {
        matches!(self, Lower::Image(_))
    }

    /// Assigns a new inode number to the object at `name`, because its number belongs to another inode.
    pub fn renumber(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        match self {
            Lower::Image(_) => Err(FsError::Damaged("two inodes of the image have the same number")),
            Lower::LowerDirs(dirs) => dirs.renumber(dir, name),
        }
    }

    /// Returns an inode's kind.
    pub fn kind(&self, ino: Ino) -> Result<Kind, FsError> {
        match self {
            Lower::Image(image) => image.kind(ino),
            Lower::LowerDirs(dirs) => dirs.kind(ino),
        }
    }

    pub fn is_dir(&self, ino: Ino) -> bool {
        self.kind(ino).is_ok_and(|kind| kind == Kind::Dir)
    }

    /// Fails unless the inode is a regular file.
    pub fn file_check(&self, ino: Ino) -> Result<(), FsError> {
        match self.kind(ino)? {
            Kind::File => Ok(()),
            Kind::Dir => Err(FsError::IsDir),
            _ => Err(FsError::WrongType),
        }
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        match self {
            Lower::Image(image) => image.getattr(ino),
            Lower::LowerDirs(dirs) => dirs.getattr(ino),
        }
    }

    /// Returns the number of subdirectories of a directory.
    pub fn subdirs(&self, dir: Ino) -> Result<u32, FsError> {
        match self {
            Lower::Image(image) => Ok(image.getattr(dir)?.nlink.saturating_sub(2)),
            Lower::LowerDirs(dirs) => dirs.subdirs(dir),
        }
    }

    /// Finds `name` in the directory `dir`.
    pub fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        match self {
            Lower::Image(image) => image.find(dir, name),
            Lower::LowerDirs(dirs) => dirs.find(dir, name),
        }
    }

    /// Returns a directory's entries.
    pub fn listing(&self, dir: Ino) -> Result<Listing<'_>, FsError> {
        match self {
            Lower::Image(image) => Ok(Listing::Image(&image.tree, image.children(dir)?)),
            Lower::LowerDirs(dirs) => Ok(Listing::LowerDirs(dirs.listing(dir)?)),
        }
    }

    /// [`crate::fs::Fs::readdir`]. An entry's `next` is valid for the life of the mount.
    pub fn readdir(&self, ino: Ino, from: u64, mut full: impl FnMut(&DirEntry) -> bool) -> Result<(), FsError> {
        let listing = self.listing(ino)?;
        if dots(ino, self.parent(ino)?, from, &mut full) {
            return Ok(());
        }
        let start = usize::try_from(from.saturating_sub(FIRST)).unwrap_or(usize::MAX);
        for item in listing.from(start) {
            let (at, Item { name, ino, kind }) = item?;
            if full(&DirEntry { name, ino, kind, next: FIRST + at as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    /// Returns the parent of the directory `ino`; the root is its own parent.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        match self {
            Lower::Image(image) => image.parent(ino),
            Lower::LowerDirs(dirs) => dirs.parent(ino),
        }
    }

    /// Returns all names of an inode, each with its directory.
    pub fn names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        match self {
            Lower::Image(image) => image.names(ino),
            Lower::LowerDirs(dirs) => dirs.names(ino),
        }
    }

    /// Returns the name of a directory; the root's is empty.
    pub fn dir_name(&self, dir: Ino) -> Result<Name, FsError> {
        Ok(self.names(dir)?.into_iter().next().map_or_else(|| Arc::from(&b""[..]), |(_, name)| name))
    }

    /// Returns the path of an inode in the lower layers, from the root.
    pub fn path(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let (mut parts, mut at) = (Vec::new(), ino);
        while at != super::ROOT {
            let (dir, name) = self.names(at)?.into_iter().next().ok_or(FsError::Stale(ino))?;
            parts.push(name);
            at = dir;
        }
        Ok(parts.iter().rev().flat_map(|part| [b"/", &part[..]].concat()).collect())
    }

    /// Resolves a path from the root in the lower layers.
    pub fn at_path(&self, path: &[u8]) -> Result<Option<Ino>, FsError> {
        let mut at = super::ROOT;
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            match self.find(at, part) {
                Ok(Some(next)) => at = next,
                Ok(None) | Err(FsError::NotDir) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(at))
    }

    /// Returns a symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, FsError> {
        match self {
            Lower::Image(image) => image.readlink(ino).map(Cow::Borrowed),
            Lower::LowerDirs(dirs) => dirs.readlink(ino).map(Cow::Owned),
        }
    }

    /// [`crate::fs::Fs::read`].
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Cow<'_, [u8]>, FsError> {
        match self {
            Lower::Image(image) => image.read(ino, offset, size),
            Lower::LowerDirs(dirs) => dirs.read(ino, offset, size).map(Cow::Owned),
        }
    }

    /// Returns the start of the next data (or the next hole) at or after `offset`; the end of the file counts as a hole
    /// (lseek(2)).
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        match self {
            Lower::Image(image) => image.seek(ino, offset, hole),
            Lower::LowerDirs(dirs) => dirs.seek(ino, offset, hole),
        }
    }

    /// Returns a file's data extents, ascending, without holes.
    pub fn pieces(&self, ino: Ino) -> Result<Vec<Piece>, FsError> {
        match self {
            Lower::Image(image) => image.pieces(ino),
            Lower::LowerDirs(dirs) => dirs.pieces(ino),
        }
    }

    /// Returns the value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, FsError> {
        match self {
            Lower::Image(image) => image.getxattr(ino, name).map(Cow::Borrowed),
            Lower::LowerDirs(dirs) => dirs.getxattr(ino, name).map(Cow::Owned),
        }
    }

    /// Returns the names of an inode's extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        match self {
            Lower::Image(image) => Ok(image.xattrs(ino)?.into_iter().map(|(name, _)| name.to_vec()).collect()),
            Lower::LowerDirs(dirs) => dirs.xattr_names(ino),
        }
    }

    /// Returns all extended attributes of an inode.
    pub fn xattrs(&self, ino: Ino) -> Result<Attributes, FsError> {
        match self {
            Lower::Image(image) => {
                Ok(image.xattrs(ino)?.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
            }
            Lower::LowerDirs(dirs) => dirs.xattrs(ino),
        }
    }

    /// Whether any inode may have a POSIX ACL.
    pub fn has_acls(&self) -> bool {
        match self {
            Lower::Image(image) => image.has_acls(),
            Lower::LowerDirs(_) => true,
        }
    }

    /// Runs `with` on an inode's kernel reference count; `None` if the inode is not in the lower layers.
    pub fn references<T>(&self, ino: Ino, with: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        match self {
            Lower::Image(image) => image.references(ino).map(with),
            Lower::LowerDirs(dirs) => dirs.references(ino, with),
        }
    }

    /// Returns the total size; nothing is free.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        match self {
            Lower::Image(image) => Ok(image.statfs()),
            Lower::LowerDirs(dirs) => dirs.statfs(),
        }
    }
}

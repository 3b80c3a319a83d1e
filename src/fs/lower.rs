//! What lies below an upper directory, or is mounted alone: an image, or plain directories. It never changes.

use super::dirs::{self, Dirs};
use super::image::{self, Image};
use super::readdir::{DirEntry, FIRST, dots};
use super::{Attr, FsError, Ino, Statfs};
use crate::backing::Handle;
use crate::layer::{Dirent, Index, IndexError};
use crate::meta::Kind;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A name in a directory.
pub type Name = Arc<[u8]>;

/// An object's extended attributes.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// A stretch of a file's data on disk.
pub struct Piece {
    /// Where it is.
    pub file: Handle,
    /// Where it begins there.
    pub offset: u64,
    /// Where it begins in the file.
    pub logical: u64,
    pub len: u64,
}

/// The lower layers, merged.
pub enum Lower {
    Image(Image),
    Dirs(Dirs),
}

/// A directory's entries, sorted by name. Their places stay the same for as long as the mount.
pub enum Listing<'a> {
    Image(&'a Index, &'a [Dirent]),
    Dirs(Arc<dirs::Dir>),
}

/// One of them.
pub struct Item<'a> {
    pub name: &'a [u8],
    pub ino: Ino,
    pub kind: Kind,
}

impl Listing<'_> {
    pub fn len(&self) -> usize {
        match self {
            Listing::Image(_, entries) => entries.len(),
            Listing::Dirs(dir) => dir.entries().len(),
        }
    }

    pub fn get(&self, at: usize) -> Result<Item<'_>, FsError> {
        match self {
            Listing::Image(index, entries) => {
                let kind = entries[at].kind().ok_or(IndexError::Damaged("an entry has no kind"))?;
                Ok(Item { name: index.name(&entries[at])?, ino: image::number(entries[at].node.get()), kind })
            }
            Listing::Dirs(dir) => Ok(dir.entries().get(at)),
        }
    }

    /// Its entries from a place on, with their places.
    pub fn from(&self, at: usize) -> impl Iterator<Item = Result<(usize, Item<'_>), FsError>> {
        (at.min(self.len())..self.len()).map(|at| Ok((at, self.get(at)?)))
    }
}

impl Lower {
    /// Whether the number is known to be one of the lower layers'.
    pub fn has(&self, ino: Ino) -> bool {
        match self {
            Lower::Image(image) => image.has(ino),
            Lower::Dirs(dirs) => dirs.has(ino),
        }
    }

    /// Whether an object of the upper directory that carries a number of the lower layers' can be what was copied up from
    /// there. Of an image that is certain; plain directories may be other ones by now, so nothing that is seen already
    /// may have the number.
    pub fn accepts(&self, ino: Ino, kind: Kind) -> bool {
        match self {
            Lower::Image(image) => image.has(ino) && image.kind(ino).is_ok_and(|found| found == kind),
            Lower::Dirs(dirs) => dirs.accepts(ino, kind),
        }
    }

    /// Sees to it that every inode is known.
    pub fn load_all(&self) -> Result<(), FsError> {
        match self {
            Lower::Image(_) => Ok(()),
            Lower::Dirs(dirs) => dirs.load_all(),
        }
    }

    /// The attributes of an inode that is known by its number alone.
    pub fn by_number(&self, ino: Ino) -> Result<Attr, FsError> {
        if !self.has(ino) {
            self.load_all()?;
        }
        self.getattr(ino)
    }

    /// What tells an inode from others that have its number in other mounts.
    pub fn generation(&self, ino: Ino) -> u32 {
        match self {
            // An image never gives an inode number to another inode.
            Lower::Image(_) => 0,
            Lower::Dirs(dirs) => dirs.generation(ino),
        }
    }

    /// Whether every directory is said to have one link.
    pub fn has_static_nlink(&self) -> bool {
        match self {
            Lower::Image(_) => false,
            Lower::Dirs(dirs) => dirs.has_static_nlink(),
        }
    }

    /// Whether numbers that upper directories carry mean the same inodes for ever.
    pub fn is_certain(&self) -> bool {
        matches!(self, Lower::Image(_))
    }

    /// Gives what has that name a number of its own: the one that it had turned out to be another inode's.
    pub fn renumber(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        match self {
            Lower::Image(_) => Err(FsError::Damaged("two inodes of an image with one number")),
            Lower::Dirs(dirs) => dirs.renumber(dir, name),
        }
    }

    /// An inode's kind.
    pub fn kind(&self, ino: Ino) -> Result<Kind, FsError> {
        match self {
            Lower::Image(image) => image.kind(ino),
            Lower::Dirs(dirs) => dirs.kind(ino),
        }
    }

    pub fn is_dir(&self, ino: Ino) -> bool {
        self.kind(ino).is_ok_and(|kind| kind == Kind::Dir)
    }

    /// That an inode has data.
    pub fn file_check(&self, ino: Ino) -> Result<(), FsError> {
        match self.kind(ino)? {
            Kind::File => Ok(()),
            Kind::Dir => Err(FsError::IsDir),
            _ => Err(FsError::WrongType),
        }
    }

    /// An inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        match self {
            Lower::Image(image) => image.getattr(ino),
            Lower::Dirs(dirs) => dirs.getattr(ino),
        }
    }

    /// How many directories a directory has in it.
    pub fn subdirs(&self, dir: Ino) -> Result<u32, FsError> {
        match self {
            Lower::Image(image) => Ok(image.getattr(dir)?.nlink.saturating_sub(2)),
            Lower::Dirs(dirs) => dirs.subdirs(dir),
        }
    }

    /// The inode that `name` is in the directory `dir`.
    pub fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        match self {
            Lower::Image(image) => image.find(dir, name),
            Lower::Dirs(dirs) => dirs.find(dir, name),
        }
    }

    /// A directory's entries.
    pub fn listing(&self, dir: Ino) -> Result<Listing<'_>, FsError> {
        match self {
            Lower::Image(image) => Ok(Listing::Image(&image.tree, image.children(dir)?)),
            Lower::Dirs(dirs) => Ok(Listing::Dirs(dirs.listing(dir)?)),
        }
    }

    /// [`crate::fs::Fs::readdir`]. An entry's `next` stays good for as long as the mount.
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

    /// The directory that holds the directory `ino`; the root holds itself.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        match self {
            Lower::Image(image) => image.parent(ino),
            Lower::Dirs(dirs) => dirs.parent(ino),
        }
    }

    /// All names of an inode, each with the directory that it is in.
    pub fn names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        match self {
            Lower::Image(image) => image.names(ino),
            Lower::Dirs(dirs) => dirs.names(ino),
        }
    }

    /// The name of a directory; the root's is empty.
    pub fn dir_name(&self, dir: Ino) -> Result<Name, FsError> {
        Ok(self.names(dir)?.into_iter().next().map_or_else(|| Arc::from(&b""[..]), |(_, name)| name))
    }

    /// Where the lower layers have an inode, as a path from the root.
    pub fn path(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let (mut parts, mut at) = (Vec::new(), ino);
        while at != super::ROOT {
            let (dir, name) = self.names(at)?.into_iter().next().ok_or(FsError::Stale(ino))?;
            parts.push(name);
            at = dir;
        }
        Ok(parts.iter().rev().flat_map(|part| [b"/", &part[..]].concat()).collect())
    }

    /// What the lower layers have at a path from the root.
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

    /// A symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, FsError> {
        match self {
            Lower::Image(image) => image.readlink(ino).map(Cow::Borrowed),
            Lower::Dirs(dirs) => dirs.readlink(ino).map(Cow::Owned),
        }
    }

    /// [`crate::fs::Fs::read`].
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Cow<'_, [u8]>, FsError> {
        match self {
            Lower::Image(image) => image.read(ino, offset, size),
            Lower::Dirs(dirs) => dirs.read(ino, offset, size).map(Cow::Owned),
        }
    }

    /// Where the next data (or the next hole) at or behind `offset` begins; the end of the file counts as a hole.
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        match self {
            Lower::Image(image) => image.seek(ino, offset, hole),
            Lower::Dirs(dirs) => dirs.seek(ino, offset, hole),
        }
    }

    /// Where a file's data lies, holes left out, ascending.
    pub fn pieces(&self, ino: Ino) -> Result<Vec<Piece>, FsError> {
        match self {
            Lower::Image(image) => image.pieces(ino),
            Lower::Dirs(dirs) => dirs.pieces(ino),
        }
    }

    /// The value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, FsError> {
        match self {
            Lower::Image(image) => image.getxattr(ino, name).map(Cow::Borrowed),
            Lower::Dirs(dirs) => dirs.getxattr(ino, name).map(Cow::Owned),
        }
    }

    /// The names of an inode's extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        match self {
            Lower::Image(image) => Ok(image.xattrs(ino)?.into_iter().map(|(name, _)| name.to_vec()).collect()),
            Lower::Dirs(dirs) => dirs.xattr_names(ino),
        }
    }

    /// All of an inode's extended attributes.
    pub fn xattrs(&self, ino: Ino) -> Result<Attributes, FsError> {
        match self {
            Lower::Image(image) => {
                Ok(image.xattrs(ino)?.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
            }
            Lower::Dirs(dirs) => dirs.xattrs(ino),
        }
    }

    /// Whether any inode may have a POSIX ACL.
    pub fn has_acls(&self) -> bool {
        match self {
            Lower::Image(image) => image.has_acls(),
            Lower::Dirs(_) => true,
        }
    }

    /// The number of references that the kernel holds to an inode; `None` for numbers that are not of the lower layers.
    pub fn references<T>(&self, ino: Ino, with: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        match self {
            Lower::Image(image) => image.references(ino).map(with),
            Lower::Dirs(dirs) => dirs.references(ino, with),
        }
    }

    /// The size of it all; nothing is free.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        match self {
            Lower::Image(image) => Ok(image.statfs()),
            Lower::Dirs(dirs) => dirs.statfs(),
        }
    }
}

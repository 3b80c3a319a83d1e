//! The file system: inodes and the operations on them, without a kernel.
//!
//! Every operation takes inode numbers and gives plain data or an [`FsError`]; `fuse` only converts. Numbers are stable
//! across remounts, and the root is 1, as FUSE wants it. A mount shows either lower layers as they are (`lower`: an image,
//! or plain directories) or the union of them and an upper directory (`union`), where everything can be changed.

mod attr;
mod changes;
mod dirs;
mod entries;
mod error;
mod export;
mod image;
mod lower;
mod new_layer;
mod readdir;
mod union;

pub use attr::{Attr, BLOCK_SIZE, Change, New, Replace, SetTime, Statfs};
pub use changes::{Changed, Changes, How};
pub use dirs::{Dirs, Options as DirsOptions};
pub use error::FsError;
pub use export::{ExportError, export};
pub use image::Data;
pub use new_layer::NewLayer;
pub use readdir::DirEntry;

pub use crate::backing::acl::ACCESS as ACCESS_ACL;
use crate::layer::Index;
use crate::name::NAME_MAX;
use crate::upper::Upper;
use image::Image;
use lower::Lower;
use std::borrow::Cow;
use std::collections::BTreeSet;
use union::Union;

/// An inode number, as `stat` shows it.
pub type Ino = u64;

/// The root directory's inode number.
pub const ROOT: Ino = 1;

/// What is mounted. All methods may be called from many threads.
pub struct Fs(Shown);

/// Which forms may be written into an upper directory that not every tool knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    /// A directory of the lower layers is moved by writing down where it came from; else that is EXDEV.
    pub redirects: bool,
    /// Attributes are copied up without the data; else both are.
    pub metacopies: bool,
}

impl Default for Forms {
    fn default() -> Forms {
        Forms { redirects: true, metacopies: true }
    }
}

enum Shown {
    Lower(Box<Lower>),
    Union(Box<Union>),
}

impl Fs {
    /// Serves `tree`, the merge of the layers whose tars are `layers`, the bottom one first. Nothing can be changed.
    pub fn new(tree: Index, layers: Vec<Data>) -> Fs {
        Fs(Shown::Lower(Box::new(Lower::Image(Image::new(tree, layers)))))
    }

    /// Serves the same with an upper directory on top, which takes all changes; a view of one takes none.
    pub fn writable(tree: Index, layers: Vec<Data>, upper: Upper) -> Result<Fs, FsError> {
        Ok(Fs(Shown::Union(Box::new(Union::new(Lower::Image(Image::new(tree, layers)), upper, Forms::default())?))))
    }

    /// Serves plain directories, with an upper directory on top if there is one.
    pub fn of_dirs(dirs: Dirs, upper: Option<Upper>, forms: Forms) -> Result<Fs, FsError> {
        Ok(Fs(match upper {
            None => Shown::Lower(Box::new(Lower::Dirs(dirs))),
            Some(upper) => Shown::Union(Box::new(Union::new(Lower::Dirs(dirs), upper, forms)?)),
        }))
    }

    /// Whether there is an upper directory that takes changes.
    pub fn is_writable(&self) -> bool {
        self.union().is_ok()
    }

    /// Whether any inode has a POSIX ACL, or may get one, so that the kernel must be asked to heed them.
    pub fn has_acls(&self) -> bool {
        match &self.0 {
            Shown::Lower(lower) => lower.has_acls(),
            Shown::Union(_) => true,
        }
    }

    /// The union, for changes.
    fn union(&self) -> Result<&Union, FsError> {
        match &self.0 {
            Shown::Union(union) if !union.is_view() => Ok(union),
            _ => Err(FsError::ReadOnly),
        }
    }

    /// The inode that `name` is in the directory `parent`. `..` is not a name here; the kernel asks [`Fs::parent`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        match &self.0 {
            Shown::Lower(lower) => lower.getattr(lower.find(parent, name)?.ok_or(FsError::NotFound)?),
            Shown::Union(union) => union.getattr(union.lookup(parent, name)?),
        }
    }

    /// The directory that holds the directory `ino`; the root holds itself.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.parent(ino),
            Shown::Union(union) => union.parent(ino),
        }
    }

    /// The attributes of an inode that is known by its number alone, as a file handle has it (open_by_handle_at(2), NFS):
    /// no lookup need have led to it in this mount. ESTALE if nothing that can be seen has the number.
    pub fn by_number(&self, ino: Ino) -> Result<Attr, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.by_number(ino),
            Shown::Union(union) => union.by_number(ino),
        }
    }

    /// What tells an inode from all others that had or will have its number, in this mount and in others: a file handle
    /// is good for inodes of its own generation only. The same for as long as the inode can be seen or is open.
    pub fn generation(&self, ino: Ino) -> u32 {
        match &self.0 {
            Shown::Lower(lower) => lower.generation(ino),
            Shown::Union(union) => union.generation(ino),
        }
    }

    /// Counts one more reference that the kernel holds to an inode: one for every answer that names it. What has no name
    /// any more lives until the last is gone.
    pub fn remember(&self, ino: Ino) {
        if let Shown::Union(union) = &self.0 {
            union.remember(ino);
        }
    }

    /// Takes back `count` of [`Fs::remember`].
    pub fn forget(&self, ino: Ino, count: u64) {
        if let Shown::Union(union) = &self.0 {
            union.forget(ino, count);
        }
    }

    /// An inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.getattr(ino),
            Shown::Union(union) => union.getattr(ino),
        }
    }

    /// Changes attributes, and gives all of them.
    pub fn setattr(&self, ino: Ino, change: &Change) -> Result<Attr, FsError> {
        self.union()?.setattr(ino, change)
    }

    /// A symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.readlink(ino),
            Shown::Union(union) => union.readlink(ino).map(Cow::Owned),
        }
    }

    /// Makes an object under a name that nothing has, else EEXIST.
    pub fn make(&self, parent: Ino, name: &[u8], new: &New) -> Result<Attr, FsError> {
        self.union()?.make(parent, name, new)
    }

    /// Gives an inode that is no directory one more name.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        self.union()?.link(ino, parent, name)
    }

    /// Removes a name of what is no directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        self.union()?.unlink(parent, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        self.union()?.rmdir(parent, name)
    }

    /// Moves a name, also a whole directory of the image. Gives the directories that have another parent now: what the
    /// kernel remembers of their listings has the old one.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        replace: Replace,
    ) -> Result<Vec<Ino>, FsError> {
        self.union()?.rename(parent, name, new_parent, new_name, replace)
    }

    /// Up to `size` bytes of a file from `offset` on, fewer only at its end. What lies in one piece in a layer's tar is
    /// a piece of the mapping, untouched, so a fault of the disk shows where it is handed on.
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Cow<'_, [u8]>, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.read(ino, offset, size),
            Shown::Union(union) => union.read(ino, offset, size),
        }
    }

    /// Writes all of `bytes`.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.union()?.write(ino, offset, bytes)
    }

    /// Writes what the kernel held back for a while. The times are its business: one that it has set meanwhile stays.
    pub fn write_back(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.union()?.write_back(ino, offset, bytes)
    }

    /// Sets a file's modification time back to the one that the kernel has for it, if that is known. For whatever changes
    /// the data of a file that the kernel caches: the kernel keeps the time of such a file, and sends it when it is another.
    pub fn keep_mtime(&self, ino: Ino) {
        if let Ok(union) = self.union() {
            union.keep_mtime(ino);
        }
    }

    /// Whether a change of a file's data, or of its size, may take long: its data must be copied first.
    pub fn is_slow_to_write(&self, ino: Ino) -> bool {
        self.union().is_ok_and(|union| union.is_slow_to_write(ino))
    }

    /// Allocates or frees space in a file; `mode` is fallocate(2)'s.
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, len: u64) -> Result<(), FsError> {
        self.union()?.fallocate(ino, mode as u32, offset, len)
    }

    /// Copies from file to file, and says how much: some of it at least, unless there is no more.
    pub fn copy_range(&self, from: Ino, at: u64, to: Ino, to_at: u64, len: u64) -> Result<u64, FsError> {
        self.union()?.copy_range(from, at, to, to_at, len)
    }

    /// Where the next data (or the next hole) at or behind `offset` begins; the end of the file counts as a hole.
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.seek(ino, offset, hole),
            Shown::Union(union) => union.seek(ino, offset, hole),
        }
    }

    /// Makes a file or a directory lasting.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<(), FsError> {
        self.union()?.fsync(ino, data_only)
    }

    /// The value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.getxattr(ino, name),
            Shown::Union(union) => union.getxattr(ino, name),
        }
    }

    /// The names of an inode's extended attributes, each followed by a NUL. `trusted.` ones are listed for a
    /// `privileged` caller only (xattr(7)).
    pub fn listxattr(&self, ino: Ino, privileged: bool) -> Result<Vec<u8>, FsError> {
        let names = match &self.0 {
            Shown::Lower(lower) => lower.xattr_names(ino)?,
            Shown::Union(union) => union.xattr_names(ino)?,
        };
        let listed = names.into_iter().filter(|name| privileged || !name.starts_with(b"trusted."));
        Ok(listed.flat_map(|name| [name, vec![0]].concat()).collect())
    }

    /// Sets an extended attribute; `flags` are setxattr(2)'s.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<(), FsError> {
        self.union()?.setxattr(ino, name, value, flags)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.union()?.removexattr(ino, name)
    }

    /// A file's flags, as `lsattr` shows them (FS_IOC_GETFLAGS).
    pub fn get_flags(&self, ino: Ino) -> Result<u32, FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok(0),
            Shown::Union(union) => union.get_flags(ino),
        }
    }

    /// Sets a file's flags (FS_IOC_SETFLAGS).
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<(), FsError> {
        self.union()?.set_flags(ino, flags)
    }

    /// A file's `struct fsxattr`, as bytes (FS_IOC_FSGETXATTR).
    pub fn get_attributes(&self, ino: Ino) -> Result<[u8; 28], FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok([0; 28]),
            Shown::Union(union) => union.get_attributes(ino),
        }
    }

    /// Sets a file's `struct fsxattr` (FS_IOC_FSSETXATTR).
    pub fn set_attributes(&self, ino: Ino, attributes: &[u8; 28]) -> Result<(), FsError> {
        self.union()?.set_attributes(ino, attributes)
    }

    /// What an upper directory makes different from the image below: every path at which something else is to be seen.
    /// Takes time by the changes, not by the image. `left_out` are paths that whoever ran something in the tree made:
    /// an empty directory or file at one of them that the image does not have is no change.
    pub fn changes(&self, left_out: &BTreeSet<Vec<u8>>) -> Result<Changes, FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok(Changes::new()),
            Shown::Union(union) => Ok(union.changes()?.settle(left_out)),
        }
    }

    /// All paths by which an inode that is no directory can be seen. In an image alone it is not asked.
    fn paths_of(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok(Vec::new()),
            Shown::Union(union) => union.paths_of(ino),
        }
    }

    /// The size of the image, or what is left where the upper directory lies.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.statfs(),
            Shown::Union(union) => union.statfs(),
        }
    }

    /// Lists the directory `ino` from `from` on, 0 being its start, until `full` says so of an entry that it did not
    /// take.
    pub fn readdir(&self, ino: Ino, from: u64, full: impl FnMut(&DirEntry) -> bool) -> Result<(), FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.readdir(ino, from, full),
            Shown::Union(union) => union.readdir(ino, from, full),
        }
    }

    /// As [`Fs::readdir`], each entry with its inode's attributes.
    pub fn readdirplus(
        &self,
        ino: Ino,
        from: u64,
        mut full: impl FnMut(&DirEntry, &Attr) -> bool,
    ) -> Result<(), FsError> {
        let mut failed = None;
        self.readdir(ino, from, |entry| match self.getattr(entry.ino) {
            Ok(attr) => full(entry, &attr),
            // Removed since it was listed.
            Err(FsError::Stale(_)) => false,
            Err(e) => {
                failed = Some(e);
                true
            }
        })?;
        failed.map_or(Ok(()), Err)
    }
}

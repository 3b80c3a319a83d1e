//! The file system: inodes and the operations on them, without a kernel.
//!
//! Every operation takes inode numbers and returns plain data or an [`FsError`]; `fuse` only converts. Inode numbers
//! are stable across remounts, and the root is 1, as FUSE requires. A mount shows either lower layers read-only
//! (`lower`: an image, or lower directories) or the union of them and an upper directory (`union`), which is writable.

mod attr;
mod changes;
mod error;
mod export;
mod image;
mod layer_diff;
mod lower;
mod lower_types;
mod lowerdirs;
mod readdir;
mod tar_export;
mod union;

pub use attr::{Attr, BLOCK_SIZE, Change, New, Replace, SetTime, Statfs};
pub use changes::{Changed, Changes, How};
pub use error::FsError;
pub use export::export;
pub use image::Data;
pub use layer_diff::NewLayer;
pub use lowerdirs::{LowerDirs, Options as LowerDirsOptions};
pub use readdir::DirEntry;
pub use tar_export::ExportError;
pub use union::Running;

pub use crate::backing::acl::{ACCESS as ACCESS_ACL, DEFAULT as DEFAULT_ACL};
use crate::handover::Handover;
use crate::layer::Index;
use crate::meta::Time;
use crate::name::NAME_MAX;
use crate::upper::Upper;
use image::Image;
use lower::Lower;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use union::Union;

/// An inode number (`st_ino`).
pub type Ino = u64;

/// The root directory's inode number.
pub const ROOT: Ino = 1;

/// A mounted file system: an image, lower directories, or a union. All methods are thread-safe.
pub struct Fs(Shown);

/// The overlayfs features that may be used in an upper directory, since not every tool supports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    /// A directory of the lower layers is renamed by a redirect; without it, the rename fails with EXDEV.
    pub redirects: bool,
    /// Copy-up of attributes leaves the data in the lower layer (metacopy); without it, the data is copied too.
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
    /// Serves the image `tree`, merged from the layers whose tars are `layers`, the bottom one first. Read-only.
    pub fn new(tree: Index, layers: Vec<Data>) -> Fs {
        Fs(Shown::Lower(Box::new(Lower::Image(Image::new(tree, layers)))))
    }

    /// Serves the same with an upper directory on top, which takes all changes; with a view of one, read-only.
    /// `handover` is what the last server of the mount has left, and receives what this one leaves.
    pub fn writable(
        tree: Index,
        layers: Vec<Data>,
        upper: Upper,
        handover: Option<Arc<Handover>>,
    ) -> Result<Fs, FsError> {
        let lower = Lower::Image(Image::new(tree, layers));
        Ok(Fs(Shown::Union(Box::new(Union::new(lower, upper, Forms::default(), handover)?))))
    }

    /// Serves lower directories, with an upper directory on top if there is one.
    /// `handover` as in [`Fs::writable`].
    pub fn of_dirs(
        dirs: LowerDirs,
        upper: Option<Upper>,
        forms: Forms,
        handover: Option<Arc<Handover>>,
    ) -> Result<Fs, FsError> {
        let lower = Lower::LowerDirs(dirs);
        if handover.as_ref().is_some_and(|handover| handover.is_resumed()) {
            // The kernel knows inodes by their numbers, which are known here once their directories are loaded.
            lower.load_all()?;
        }
        Ok(Fs(match upper {
            None => Shown::Lower(Box::new(lower)),
            Some(upper) => Shown::Union(Box::new(Union::new(lower, upper, forms, handover)?)),
        }))
    }

    /// Whether an upper directory takes changes.
    pub fn is_writable(&self) -> bool {
        self.union().is_ok()
    }

    /// Returns the merged index of an image without an upper directory; `None` for anything else. An inode's number is
    /// its position in the index plus one.
    pub fn index(&self) -> Option<&Index> {
        match &self.0 {
            Shown::Lower(lower) => lower.index(),
            Shown::Union(_) => None,
        }
    }

    /// Whether any inode has a POSIX ACL, or may get one: the kernel must then be told to enforce ACLs.
    pub fn has_acls(&self) -> bool {
        match &self.0 {
            Shown::Lower(lower) => lower.has_acls(),
            Shown::Union(_) => true,
        }
    }

    /// Returns the union; EROFS if there is none.
    fn union(&self) -> Result<&Union, FsError> {
        match &self.0 {
            Shown::Union(union) if !union.is_view() => Ok(union),
            _ => Err(FsError::ReadOnly),
        }
    }

    /// Looks up `name` in the directory `parent`. `..` is not handled here; the kernel calls [`Fs::parent`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        match &self.0 {
            Shown::Lower(lower) => lower.getattr(lower.find(parent, name)?.ok_or(FsError::NotFound)?),
            Shown::Union(union) => union.getattr(union.lookup(parent, name)?),
        }
    }

    /// Returns the inode number of a name; ENOENT if there is no such name.
    pub fn number(&self, parent: Ino, name: &[u8]) -> Result<Ino, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.find(parent, name)?.ok_or(FsError::NotFound),
            Shown::Union(union) => union.lookup(parent, name),
        }
    }

    /// Returns the parent of the directory `ino`; the root is its own parent.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.parent(ino),
            Shown::Union(union) => union.parent(ino),
        }
    }

    /// Returns the attributes of an inode that is known only by its number, as from a file handle
    /// (open_by_handle_at(2), NFS): it need not have been looked up in this mount. ESTALE if no visible inode has the
    /// number.
    pub fn by_number(&self, ino: Ino) -> Result<Attr, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.by_number(ino),
            Shown::Union(union) => union.by_number(ino),
        }
    }

    /// Returns an inode's generation, which distinguishes it from all inodes that had or will have its number, in this
    /// mount and in others: a file handle is valid for one generation only. Constant while the inode is visible or
    /// open.
    pub fn generation(&self, ino: Ino) -> u32 {
        match &self.0 {
            Shown::Lower(lower) => lower.generation(ino),
            Shown::Union(union) => union.generation(ino),
        }
    }

    /// Begins a request, unless the file system is read-only. Inode numbers that are looked up are valid until the
    /// request ends; after it, only those with a kernel reference.
    pub fn begin(&self) -> Option<Running<'_>> {
        match &self.0 {
            Shown::Lower(_) => None,
            Shown::Union(union) => Some(union.begin()),
        }
    }

    /// Adds one kernel reference to an inode, as each reply that names the inode must. An inode without names is kept until
    /// the last reference is dropped.
    pub fn remember(&self, ino: Ino) {
        if let Shown::Union(union) = &self.0 {
            union.remember(ino);
        }
    }

    /// Drops `count` references that [`Fs::remember`] added.
    pub fn forget(&self, ino: Ino, count: u64) {
        if let Shown::Union(union) = &self.0 {
            union.forget(ino, count);
        }
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.getattr(ino),
            Shown::Union(union) => union.getattr(ino),
        }
    }

    /// Changes attributes, and returns the new ones.
    pub fn setattr(&self, ino: Ino, change: &Change) -> Result<Attr, FsError> {
        self.union()?.setattr(ino, change)
    }

    /// Returns a symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Cow<'_, [u8]>, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.readlink(ino),
            Shown::Union(union) => union.readlink(ino).map(Cow::Owned),
        }
    }

    /// Creates an object under a new name; EEXIST if the name exists.
    pub fn make(&self, parent: Ino, name: &[u8], new: &New) -> Result<Attr, FsError> {
        self.union()?.make(parent, name, new)
    }

    /// Creates a hard link to an inode that is not a directory.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        self.union()?.link(ino, parent, name)
    }

    /// Removes a name that is not a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        self.union()?.unlink(parent, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        self.union()?.rmdir(parent, name)
    }

    /// Renames a name, also a whole directory of the image. Returns the directories whose parent has changed: the `..`
    /// in the kernel's cached listings of them is stale.
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

    /// Reads up to `size` bytes of a file at `offset`; fewer only at its end. Data that is contiguous in a layer's tar
    /// is returned as a slice of the mapping, unread, so a disk fault shows where the slice is
    /// used.
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

    /// Writes pages from the kernel's write-back cache. The kernel owns the times: one that it has set meanwhile is
    /// kept.
    pub fn write_back(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.union()?.write_back(ino, offset, bytes)
    }

    /// Restores a file's modification time to the kernel's cached one, if that is known. Must be called after changing
    /// the data of a file that the kernel caches: the kernel keeps the time of such a file, and sends it only when it
    /// changes.
    pub fn keep_mtime(&self, ino: Ino) {
        if let Ok(union) = self.union() {
            union.keep_mtime(ino);
        }
    }

    /// Returns the modification time of a file that the kernel has cached ([`Fs::keep_mtime`]), as far as it is known.
    pub fn kernel_mtime(&self, ino: Ino) -> Option<Time> {
        self.union().ok()?.kernel_mtime(ino)
    }

    /// Sets what [`Fs::kernel_mtime`] returns.
    pub fn set_kernel_mtime(&self, ino: Ino, mtime: Time) {
        if let Ok(union) = self.union() {
            union.set_kernel_mtime(ino, mtime);
        }
    }

    /// Records that the last name of an inode has been removed, if that is not known: by a server that died then.
    pub fn note_removed(&self, ino: Ino) -> Result<(), FsError> {
        self.union()?.note_removed(ino)
    }

    /// Whether a change of a file's data or size may take long, because its data must be copied up first.
    pub fn is_slow_to_write(&self, ino: Ino) -> bool {
        self.union().is_ok_and(|union| union.is_slow_to_write(ino))
    }

    /// Allocates or deallocates space in a file; `mode` is fallocate(2)'s.
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, len: u64) -> Result<(), FsError> {
        self.union()?.fallocate(ino, mode as u32, offset, len)
    }

    /// Copies data from file to file (copy_file_range(2)), and returns the length copied: 0 only at the end of the
    /// source.
    pub fn copy_range(&self, from: Ino, at: u64, to: Ino, to_at: u64, len: u64) -> Result<u64, FsError> {
        self.union()?.copy_range(from, at, to, to_at, len)
    }

    /// Returns the start of the next data (or the next hole) at or after `offset`; the end of the file counts as a hole
    /// (lseek(2)).
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.seek(ino, offset, hole),
            Shown::Union(union) => union.seek(ino, offset, hole),
        }
    }

    /// Syncs a file or a directory to disk.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<(), FsError> {
        self.union()?.fsync(ino, data_only)
    }

    /// Returns the value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.getxattr(ino, name),
            Shown::Union(union) => union.getxattr(ino, name),
        }
    }

    /// Returns the names of an inode's extended attributes, each followed by a NUL. `trusted.` ones are returned to a
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

    /// Returns a file's inode flags, as `lsattr` shows them (FS_IOC_GETFLAGS).
    pub fn get_flags(&self, ino: Ino) -> Result<u32, FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok(0),
            Shown::Union(union) => union.get_flags(ino),
        }
    }

    /// Sets a file's inode flags (FS_IOC_SETFLAGS).
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<(), FsError> {
        self.union()?.set_flags(ino, flags)
    }

    /// Returns a file's `struct fsxattr`, as bytes (FS_IOC_FSGETXATTR).
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

    /// Returns the diff of the upper directory against the image: every path that differs. The time taken depends on
    /// the number of changes, not on the image. `left_out` are mountpoints that a container runtime created: an empty
    /// directory or file at one of them that the image does not have is no change.
    pub fn changes(&self, left_out: &BTreeSet<Vec<u8>>) -> Result<Changes, FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok(Changes::new()),
            Shown::Union(union) => Ok(union.changes()?.settle(left_out)),
        }
    }

    /// Returns all paths of an inode that is not a directory. Unused for an image alone.
    fn paths_of(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        match &self.0 {
            Shown::Lower(_) => Ok(Vec::new()),
            Shown::Union(union) => union.paths_of(ino),
        }
    }

    /// Returns the size of the image, or the free space of the upper directory's file system.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.statfs(),
            Shown::Union(union) => union.statfs(),
        }
    }

    /// Lists the directory `ino` from offset `from` on (0 is its start), until `full` returns true for an entry, which
    /// then does not count as listed.
    pub fn readdir(&self, ino: Ino, from: u64, full: impl FnMut(&DirEntry) -> bool) -> Result<(), FsError> {
        match &self.0 {
            Shown::Lower(lower) => lower.readdir(ino, from, full),
            Shown::Union(union) => union.readdir(ino, from, full),
        }
    }

    /// The same as [`Fs::readdir`], with the attributes of each entry's inode.
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

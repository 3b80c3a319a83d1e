//! The union: an upper directory on top of an image or of lower directories ([`Lower`]). "The image", here and in the
//! files beside, means either; where lower directories guarantee less, the code asks [`Lower`].
//!
//! Identity is the inode number. An inode of the image keeps its number across copy-up and rename; new inodes get
//! numbers that were never used. A path serves only to find an object in the upper directory again.
//!
//! # The steps of an operation
//!
//! First preparation, which no caller can see: copy-up (attributes only; data only where it is written), and removing
//! whiteouts from directories. Then *one* system call that changes the view. Then the update of the inode table. Then
//! clean-up. A failure before that one call leaves the old view; a failure after it does not undo the operation.
//!
//! # Hard links
//!
//! A file of the image with several hard links is copied up under all of its names before it is changed in any way. It
//! so stays one inode, for the kernel too, and its link count is the one on disk.
//!
//! # Locks, in this order
//!
//! 1. `renames`: held by every rename, so that no directory moves while another rename checks ancestry;
//! 2. a stripe of `copying`: held by the copy-up of a file's attributes;
//! 3. `Locks::change`: of a directory, held to change names in it (several in the order of their inode numbers); of a
//!    file, held to copy its data (which may take long, and takes no other lock but the table's);
//! 4. `Locks::load` of a directory: held while it is read; then `numbering`;
//! 5. `Locks::privileges` of a file: held to write to it or to set its capabilities;
//! 6. the lock of the inode table: for memory only, never held over a system call.

mod attr;
mod changes;
mod copy_up;
mod create;
mod data;
mod inode_table;
mod load_dir;
mod lower_names;
mod readdir;
mod remove;
mod rename;
mod resume;
mod unload;
mod xattr;

use super::lower::Lower;
use super::{Forms, FsError, Ino, ROOT};
use crate::backing::{Handle, share};
use crate::handover::Handover;
use crate::meta::Kind;
use crate::upper::Upper;
use inode_table::{Data, Dir, Entry, INHERITED, Locks, NameState, Table};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use unload::Forgotten;
pub use unload::Running;

/// How often a lookup is retried when concurrent renames keep moving the object.
const TRIES: usize = 64;
const STRIPES: usize = 64;

/// Whether opening a name failed because another thread has moved or replaced the object since it was seen.
fn is_of_another(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || matches!(Errno::from_io_error(error), Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR))
}

/// The union of an image or lower directories with an upper directory.
pub struct Union {
    lower: Lower,
    upper: Upper,
    table: RwLock<Table>,
    renames: Mutex<()>,
    copying: [Mutex<()>; STRIPES],
    /// Held while inode numbers are assigned to objects that other tools made in the upper directory.
    numbering: Mutex<()>,
    /// Whether every directory of the upper has been loaded.
    all_loaded: AtomicBool,
    /// The next generation number for inodes on file systems without file handles.
    next_generation: AtomicU32,
    /// Whether such a number has been used.
    counts_generations: AtomicBool,
    /// Whether every directory reports a link count of 1.
    static_nlink: bool,
    forms: Forms,
    /// What the last server of the mount has left, and what this one leaves.
    handover: Option<Arc<Handover>>,
    forgotten: Forgotten,
}

/// The layer in which a name of the union was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// In the upper directory.
    Upper(Ino),
    /// In the lower layers only.
    Lower(Ino),
}

impl Found {
    fn ino(self) -> Ino {
        match self {
            Found::Upper(ino) | Found::Lower(ino) => ino,
        }
    }
}

impl Union {
    /// Builds the union, and finishes copy-ups that a crash interrupted; a view ([`Upper::view`]) changes nothing on
    /// disk.
    pub fn new(
        lower: Lower,
        mut upper: Upper,
        forms: Forms,
        handover: Option<Arc<Handover>>,
    ) -> Result<Union, FsError> {
        let resumed = handover.clone().filter(|handover| handover.is_resumed());
        if let Some(handover) = &resumed {
            upper.reopen()?;
            if handover.has_lost_write() {
                upper.note_failure();
            }
        }
        let static_nlink = lower.has_static_nlink();
        let forms = if upper.has_marks() { forms } else { Forms { redirects: false, metacopies: false } };
        let union = Union {
            lower,
            upper,
            table: RwLock::new(Table::new(handover.clone())),
            renames: Mutex::default(),
            copying: std::array::from_fn(|_| Mutex::default()),
            numbering: Mutex::default(),
            all_loaded: AtomicBool::new(false),
            next_generation: AtomicU32::new(RandomState::new().hash_one(0) as u32),
            counts_generations: AtomicBool::new(false),
            static_nlink,
            forms,
            handover,
            forgotten: Forgotten::default(),
        };
        union.adopt_root()?;
        if !union.is_view() {
            union.finish_links()?;
        }
        if let Some(handover) = &resumed {
            union.resume(handover)?;
        }
        Ok(union)
    }

    /// Copies the attributes of the image's root to the root of a fresh upper directory.
    fn adopt_root(&self) -> Result<(), FsError> {
        let root = self.upper.root();
        if self.upper.is_fresh() && self.is_view() {
            // Without an entry in the table, the root is the image's.
            return Ok(());
        }
        if self.upper.is_fresh() {
            self.upper.clear_acls(root.as_fd())?;
            let draft = self.draft_of(ROOT)?;
            let object = self.upper.object(root.as_fd())?;
            let owner = (Some(draft.uid), Some(draft.gid));
            self.upper.set_owner_and_mode(root.as_fd(), &object, owner, Some(draft.mode))?;
            for (name, value) in &draft.xattrs {
                self.upper.set_xattr(root.as_fd(), name, value, rustix::fs::XattrFlags::empty())?;
            }
            if let Some((atime, mtime)) = draft.times {
                let times = crate::upper::timestamps(Some(atime), Some(mtime));
                self.upper.backing().utimens(root.as_fd(), &times)?;
            }
            self.upper.claim()?;
        }
        let raw = self.upper.backing().stat(root.as_fd())?;
        let opaque = self.upper.is_opaque(root.as_fd())?;
        let mut entry = Entry::new(Kind::Dir, Some(raw.ino));
        // The root is listed as a name in itself, so that it never counts as removed.
        entry.add_name(ROOT, Arc::from(&b"/"[..]));
        let lower = (!opaque).then_some(ROOT);
        entry.dir = Some(Dir::new(lower, None));
        self.table_mut().insert(ROOT, entry);
        Ok(())
    }

    /// Whether the union is a read-only view of the upper directory.
    pub fn is_view(&self) -> bool {
        self.upper.is_view()
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read()
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write()
    }

    /// Finds `name` in a directory; `None` if it does not exist.
    fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Found>, FsError> {
        self.ensure_loaded(dir)?;
        let lower = {
            let table = self.table();
            let Some(entry) = table.get(dir) else {
                drop(table);
                return self.find_lower(dir, dir, name);
            };
            let here = entry.dir.as_ref().ok_or(FsError::NotDir)?;
            match here.names.as_ref().and_then(|names| names.get(name)) {
                Some(NameState::Inode(ino)) => return Ok(Some(Found::Upper(ino))),
                Some(NameState::Whiteout) => return Ok(None),
                None if entry.is_removed() => return Ok(None),
                None => here.lower,
            }
        };
        match lower {
            Some(lower) => self.find_lower(dir, lower, name),
            None => Ok(None),
        }
    }

    /// Finds a name that shows through from the lower layers.
    fn find_lower(&self, dir: Ino, lower: Ino, name: &[u8]) -> Result<Option<Found>, FsError> {
        let Some(ino) = self.lower.find(lower, name)? else { return Ok(None) };
        let table = self.table();
        if !self.belongs_to_upper(&table, ino) {
            return Ok(Some(Found::Lower(ino)));
        }
        // A concurrent copy-up may have entered the name already.
        match table.names(dir).and_then(|names| names.get(name)) {
            Some(NameState::Inode(ino)) => Ok(Some(Found::Upper(ino))),
            Some(NameState::Whiteout) => Ok(None),
            None => Ok(Some(Found::Lower(self.lower.renumber(lower, name)?))),
        }
    }

    /// Whether the number of a lower inode that shows through belongs to an object of the upper directory, which
    /// carries it from a mount with other lower directories. The source of a copy-up is hidden by the copy, so it never
    /// gets here.
    fn belongs_to_upper(&self, table: &Table, ino: Ino) -> bool {
        let known = |entry: &Entry| entry.raw.is_some() && !entry.linking && !entry.is_removed();
        !self.lower.is_certain() && table.get(ino).is_some_and(known)
    }

    /// Returns the inode of `name` in the directory `dir`.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        Ok(self.find(dir, name)?.ok_or(FsError::NotFound)?.ino())
    }

    /// Returns the parent of the directory `ino`; the root is its own parent.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        match self.table().get(ino) {
            Some(entry) if entry.dir.is_none() => Err(FsError::NotDir),
            Some(entry) => Ok(entry.names.first().map_or(ino, |(dir, _)| *dir)),
            None => self.lower.parent(ino),
        }
    }

    /// Whether a lower layer has the name where it would show through, so that removing the name from the upper needs a
    /// whiteout.
    fn covers(&self, dir: Ino, name: &[u8]) -> Result<bool, FsError> {
        let lower = match self.table().get(dir) {
            Some(entry) => entry.dir.as_ref().and_then(|dir| dir.lower),
            None => Some(dir),
        };
        match lower {
            Some(lower) => Ok(self.lower.find(lower, name)?.is_some()),
            None => Ok(false),
        }
    }

    fn locks_of(&self, ino: Ino) -> Result<Arc<Locks>, FsError> {
        Ok(self.table().get(ino).ok_or(FsError::NotFound)?.locks.clone())
    }

    /// Opens an inode of the upper, or returns its cached descriptor. The inode is found by its names, which concurrent
    /// operations may change, so the opened object is compared with the expected one.
    fn handle(&self, ino: Ino) -> Result<Handle, FsError> {
        Ok(self.opened(ino)?.0)
    }

    /// Opens a file of the upper for writing to its data; fails with the backing file system's error if it can be
    /// opened read-only only.
    fn writable_handle(&self, ino: Ino) -> Result<Handle, FsError> {
        match self.opened(ino)? {
            (handle, None) => Ok(handle),
            (_, Some(refusal)) => Err(refusal.into()),
        }
    }

    /// Returns a descriptor, with the error that made it read-only, if any.
    fn opened(&self, ino: Ino) -> Result<(Handle, Option<io::Error>), FsError> {
        for _ in 0..TRIES {
            if let Some(opened) = self.try_open(ino)? {
                return Ok(opened);
            }
        }
        Err(FsError::Stale(ino))
    }

    fn try_open(&self, ino: Ino) -> Result<Option<(Handle, Option<io::Error>)>, FsError> {
        let mut way = Vec::new();
        let mut at = ino;
        let mut handle = loop {
            if at == ROOT {
                break self.upper.root();
            }
            if let Some(open) = self.upper.handles().get(at) {
                break open;
            }
            let table = self.table();
            let entry = table.get(at);
            if let Some(held) = entry.and_then(|entry| entry.held.as_ref()) {
                break held.clone();
            }
            let found = entry.and_then(|entry| Some((entry.names.first()?, entry.raw?)));
            let Some(((dir, name), raw)) = found else {
                // A directory above it may have been removed, after it was moved elsewhere.
                return if at == ino { Err(FsError::Stale(ino)) } else { Ok(None) };
            };
            way.push((at, name.clone(), raw));
            at = *dir;
        };
        let mut refusal = None;
        for (at, name, raw) in way.into_iter().rev() {
            let seen = match self.upper.backing().stat_at(handle.as_fd(), &name) {
                Ok(seen) if seen.ino == raw => seen,
                Ok(_) => return Ok(None),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let (opened, refused) = match self.upper.open_entry(handle.as_fd(), &name, seen.mode) {
                Err(e) if is_of_another(&e) => return Ok(None),
                opened => opened?,
            };
            let opened = share(opened);
            if self.upper.backing().stat_without_times(opened.as_fd())?.ino != raw {
                return Ok(None);
            }
            if refused.is_none() {
                self.upper.handles().put(at, opened.clone());
            }
            (handle, refusal) = (opened, refused);
        }
        Ok(Some((handle, refusal)))
    }

    /// Adds one kernel reference to an inode. During a request ([`Union::begin`]).
    pub fn remember(&self, ino: Ino) {
        let counted = self.lower.references(ino, |count| count.fetch_add(1, Ordering::Relaxed));
        if counted.is_none()
            && let Some(entry) = self.table().get(ino)
        {
            entry.locks.references.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Drops `count` kernel references. An inode without names and references is freed; others may be unloaded.
    pub fn forget(&self, ino: Ino, count: u64) {
        let take = |counter: &AtomicU64| {
            let fewer = |held: u64| Some(held & INHERITED | (held & !INHERITED).saturating_sub(count));
            let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).unwrap_or_default();
            (before & !INHERITED).saturating_sub(count)
        };
        let own = || self.table().get(ino).map(|entry| take(&entry.locks.references));
        if self.lower.references(ino, take).or_else(own) == Some(0) {
            // The kernel cannot have got an inode without names again, so it has no inherited reference either.
            self.drop_removed(ino);
            self.note_forgotten(ino);
        }
    }

    /// Whether the kernel may have a reference to an inode.
    fn is_referenced(&self, ino: Ino) -> bool {
        self.is_known(ino, self.table().get(ino))
    }

    /// The same for an inode whose entry is `entry`.
    fn is_known(&self, ino: Ino, entry: Option<&Entry>) -> bool {
        if self.is_resumed() && self.lower.has(ino) {
            // References given by earlier servers are not counted.
            return true;
        }
        let is_held = |count: &AtomicU64| count.load(Ordering::Relaxed) > 0;
        // Lower directories that have been loaded meanwhile may count an inode from now on.
        self.lower.references(ino, is_held).unwrap_or_default()
            || entry.is_some_and(|entry| is_held(&entry.locks.references))
    }

    /// Removes an inode without names from the table once the kernel holds no reference to it.
    fn drop_removed(&self, ino: Ino) {
        let dropped = {
            let mut table = self.table_mut();
            match table.get(ino) {
                Some(entry) if entry.is_removed() && !entry.linking => table.remove(ino),
                _ => None,
            }
        };
        if let Some(entry) = dropped {
            self.leave_nothing_of(ino, &entry);
            // Closes the descriptor after the table's lock is released.
            self.upper.handles().take(ino);
        }
    }

    /// Fails unless the inode is a regular file.
    fn is_file(&self, ino: Ino) -> Result<(), FsError> {
        let kind = match self.table().get(ino) {
            Some(entry) => entry.kind,
            None => return self.lower.file_check(ino),
        };
        match kind {
            Kind::File => Ok(()),
            Kind::Dir => Err(FsError::IsDir),
            _ => Err(FsError::WrongType),
        }
    }

    fn data_of(&self, ino: Ino) -> Option<Data> {
        self.table().get(ino).map(|entry| match entry.raw {
            Some(_) => entry.data,
            None => Data::Lower(ino, u64::MAX),
        })
    }
}

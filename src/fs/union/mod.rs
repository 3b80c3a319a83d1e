//! The union of lower layers and an upper directory. What is said here and in the files beside of the image holds for plain
//! directories below too; what they cannot promise is asked of [`Lower`].
//!
//! Identity is the inode number. An inode of the image has its number for ever, copied up or not, moved or not; new ones
//! get numbers that were never used. So everything hangs on the number, and a path is needed only to find an object in
//! the upper directory again.
//!
//! # How an operation is made
//!
//! First steps that nobody can see: copying up what will be changed (attributes only, never data, but for what is
//! written), emptying directories of whiteouts. Then *one* system call that changes the view. Then the table in memory is
//! told. Then sweeping. What fails before that one call leaves the old view; what fails behind it has happened.
//!
//! # Hard links
//!
//! A file of the image with several names is copied up under all of them before it is changed in any way, so that it
//! stays one file, for the kernel too, and its link count is the one on disk.
//!
//! # Locks, in this order
//!
//! 1. `renames`, by every rename: so no directory moves while another rename asks what lies above what;
//! 2. a stripe of `copying`, by whoever copies up a file's attributes;
//! 3. `Locks::change` of directories, by whoever changes names in them, several in the order of their numbers; of a
//!    file, by whoever copies its data (which may take long, and takes no other lock but the table's);
//! 4. `Locks::load` of a directory, while it is read, and then `numbering`;
//! 5. `Locks::privileges` of a file, by whoever writes it or sets its capabilities;
//! 6. the table's, for memory only: never over a system call.

mod attr;
mod changes;
mod copy_up;
mod data;
mod load;
mod make;
mod origin;
mod readdir;
mod remove;
mod rename;
mod table;
mod xattr;

use super::lower::Lower;
use super::{Forms, FsError, Ino, ROOT};
use crate::backing::{Handle, share};
use crate::meta::Kind;
use crate::upper::Upper;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use table::{Data, Dir, Entry, Locks, Table, What};

/// How often something that others keep moving is looked for again.
const TRIES: usize = 64;
const STRIPES: usize = 64;

/// An image with an upper directory on top.
pub struct Union {
    lower: Lower,
    upper: Upper,
    table: RwLock<Table>,
    renames: Mutex<()>,
    copying: [Mutex<()>; STRIPES],
    /// Held while numbers are given to what an upper directory that others wrote has.
    numbering: Mutex<()>,
    /// Whether every directory of the upper has been read.
    all_loaded: AtomicBool,
    /// For what the file system below has no file handles for.
    next_generation: AtomicU32,
    /// Whether every directory has one link.
    static_nlink: bool,
    forms: Forms,
}

/// What a name is in the union.
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

/// A mutex whose holder panicked is entered: what it guards is whole at every step, or is on disk.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Union {
    /// Puts an upper directory on an image, and finishes what a crash left undone; a view of one only shows it.
    pub fn new(lower: Lower, upper: Upper, forms: Forms) -> Result<Union, FsError> {
        let static_nlink = lower.has_static_nlink();
        let forms = if upper.has_marks() { forms } else { Forms { redirects: false, metacopies: false } };
        let union = Union {
            lower,
            upper,
            table: RwLock::default(),
            renames: Mutex::default(),
            copying: std::array::from_fn(|_| Mutex::default()),
            numbering: Mutex::default(),
            all_loaded: AtomicBool::new(false),
            next_generation: AtomicU32::new(RandomState::new().hash_one(0) as u32),
            static_nlink,
            forms,
        };
        union.adopt_root()?;
        if !union.is_view() {
            union.finish_links()?;
        }
        Ok(union)
    }

    /// The root of a fresh upper directory becomes the image's.
    fn adopt_root(&self) -> Result<(), FsError> {
        let root = self.upper.root();
        if self.upper.is_fresh() && self.is_view() {
            // Without an entry of its own the root is the image's, as all is.
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
        // The root is its own name's directory, so that it counts as one that has not been removed.
        entry.names.push((ROOT, Arc::from(&b"/"[..])));
        let lower = (!opaque).then_some(ROOT);
        entry.dir = Some(Dir { lower, names: None, subdirs: 0, default_acl: None });
        self.table_mut().insert(ROOT, entry);
        Ok(())
    }

    /// Whether nothing can be changed.
    pub fn is_view(&self) -> bool {
        self.upper.is_view()
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `name` is in a directory; `None` if it is nothing.
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
                Some(What::Inode(ino)) => return Ok(Some(Found::Upper(ino))),
                Some(What::Whiteout) => return Ok(None),
                None if entry.is_removed() => return Ok(None),
                None => here.lower,
            }
        };
        match lower {
            Some(lower) => self.find_lower(dir, lower, name),
            None => Ok(None),
        }
    }

    /// What a name of a directory is that shows through from one of the lower layers.
    fn find_lower(&self, dir: Ino, lower: Ino, name: &[u8]) -> Result<Option<Found>, FsError> {
        let Some(ino) = self.lower.find(lower, name)? else { return Ok(None) };
        let table = self.table();
        if !self.is_others(&table, ino) {
            return Ok(Some(Found::Lower(ino)));
        }
        // It may just have been copied up, and then has its name there.
        match table.names(dir).and_then(|names| names.get(name)) {
            Some(What::Inode(ino)) => Ok(Some(Found::Upper(ino))),
            Some(What::Whiteout) => Ok(None),
            None => Ok(Some(Found::Lower(self.lower.renumber(lower, name)?))),
        }
    }

    /// Whether a number of something that shows through is that of an object of the upper directory, which carries it from
    /// a time when the directories below were other ones. What was copied up hides what it was copied from.
    fn is_others(&self, table: &Table, ino: Ino) -> bool {
        let known = |entry: &Entry| entry.raw.is_some() && !entry.linking && !entry.is_removed();
        !self.lower.is_certain() && table.get(ino).is_some_and(known)
    }

    /// The inode that `name` is in the directory `dir`.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        Ok(self.find(dir, name)?.ok_or(FsError::NotFound)?.ino())
    }

    /// The directory that holds the directory `ino`; the root holds itself.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        match self.table().get(ino) {
            Some(entry) if entry.dir.is_none() => Err(FsError::NotDir),
            Some(entry) => Ok(entry.names.first().map_or(ino, |(dir, _)| *dir)),
            None => self.lower.parent(ino),
        }
    }

    /// Whether the image has that name where it would show through a directory, so that removing it from the upper needs
    /// a whiteout.
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

    /// The descriptor of an inode of the upper. It is found by its names, which others may be changing, so what is opened
    /// is compared with what is wanted.
    fn handle(&self, ino: Ino) -> Result<Handle, FsError> {
        Ok(self.opened(ino)?.0)
    }

    /// The descriptor of a file of the upper whose data is to be changed; what the file system below says to that, if it
    /// can only be read.
    fn writable_handle(&self, ino: Ino) -> Result<Handle, FsError> {
        match self.opened(ino)? {
            (handle, None) => Ok(handle),
            (_, Some(refusal)) => Err(refusal.into()),
        }
    }

    /// A descriptor, and why it can only be read.
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
            let entry = table.get(at).ok_or(FsError::Stale(ino))?;
            if let Some(held) = &entry.held {
                break held.clone();
            }
            let (Some((dir, name)), Some(raw)) = (entry.names.first(), entry.raw) else {
                return Err(FsError::Stale(ino));
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
            let (opened, refused) = self.upper.open_entry(handle.as_fd(), &name, seen.mode)?;
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

    /// The kernel holds one more reference to an inode.
    pub fn remember(&self, ino: Ino) {
        let counted = self.lower.references(ino, |count| count.fetch_add(1, Ordering::Relaxed));
        if counted.is_none()
            && let Some(entry) = self.table().get(ino)
        {
            entry.locks.references.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The kernel lets go of references. What has no name either is gone for good.
    pub fn forget(&self, ino: Ino, count: u64) {
        let left = {
            let fewer = |held: u64| Some(held.saturating_sub(count));
            let take = |counter: &AtomicU64| {
                let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).unwrap_or_default();
                before.saturating_sub(count)
            };
            let own = || self.table().get(ino).map(|entry| take(&entry.locks.references));
            match self.lower.references(ino, take).or_else(own) {
                Some(left) => left,
                None => return,
            }
        };
        if left == 0 {
            self.drop_removed(ino);
        }
    }

    fn is_referenced(&self, ino: Ino) -> bool {
        let is_held = |count: &AtomicU64| count.load(Ordering::Relaxed) > 0;
        let own = || self.table().get(ino).is_some_and(|entry| is_held(&entry.locks.references));
        self.lower.references(ino, is_held).unwrap_or_else(own)
    }

    /// Forgets an inode that has no names, if the kernel knows it no more.
    fn drop_removed(&self, ino: Ino) {
        let dropped = {
            let mut table = self.table_mut();
            match table.get(ino) {
                Some(entry) if entry.is_removed() && !entry.linking => table.remove(ino),
                _ => None,
            }
        };
        if dropped.is_some() {
            // Closed here, behind the table's lock.
            self.upper.handles().take(ino);
        }
    }

    /// That an inode has data.
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

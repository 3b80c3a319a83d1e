//! What is known in memory of the upper directory: which names it has, which inodes they are and what they hide. Only
//! what has been looked at is here. Nothing in this file does I/O; whoever changes something on disk tells the table
//! afterwards, so that a call that failed has changed nothing.

use crate::backing::Handle;
use crate::fs::Ino;
use crate::meta::{Kind, Time};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

pub use crate::fs::lower::Name;

/// All that is known.
#[derive(Default)]
pub struct Table {
    entries: HashMap<Ino, Entry>,
    /// Inode numbers by those of the file system below, which tell hard links.
    by_raw: HashMap<u64, Ino>,
}

/// An inode that is in the upper directory, or is of the image and has lost its names.
pub struct Entry {
    pub kind: Kind,
    /// The number below. `None` for what is the image's still: its last name is gone, but it may be open.
    pub raw: Option<u64>,
    /// Its names, as far as they have been seen. None for what is removed.
    pub names: Vec<(Ino, Name)>,
    /// Where a file's data is.
    pub data: Data,
    /// Whether the file may have capabilities, which a write in the upper directory would remove.
    pub capable: bool,
    /// The modification time that the kernel has for a file that it caches, as far as that is known: it got it when it made
    /// the file, or set it. What it writes back later does not change it.
    pub kernel_mtime: Option<Time>,
    /// Links below that are no names: those in the work directory.
    pub spare: u32,
    /// Whether it has not got all of its names yet: until then it must not be changed.
    pub linking: bool,
    /// Of what has no names any more: the way to it.
    pub held: Option<Handle>,
    /// What tells it from others that have its number at other times, once it was asked for.
    pub generation: Option<u32>,
    pub dir: Option<Dir>,
    pub locks: Arc<Locks>,
}

/// Where a file's data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    /// In the upper directory.
    Upper,
    /// In the lower layers, as that inode's, so many bytes of it.
    Lower(Ino, u64),
    /// In no layer, though the upper directory has attributes only.
    Missing,
}

/// Held over system calls, unlike the table's own lock. Lock order: the module's documentation.
#[derive(Default)]
pub struct Locks {
    /// A directory: its names are being changed. A file: its data is being copied up.
    pub change: Mutex<()>,
    /// A directory: its names are being read from disk.
    pub load: Mutex<()>,
    /// A file: shared by writes, held alone by whoever sets capabilities, or writes although there are some.
    pub privileges: RwLock<()>,
    /// How many references the kernel holds, of an inode that the image does not have.
    pub references: AtomicU64,
}

/// A directory of the upper.
pub struct Dir {
    /// The image's directory that shows through.
    pub lower: Option<Ino>,
    /// What is in it, once it has been read.
    pub names: Option<Names>,
    /// Directories in the union of both.
    pub subdirs: u32,
    /// The default ACL, once it has been read.
    pub default_acl: Option<Option<Arc<[u8]>>>,
}

/// The names in a directory of the upper.
#[derive(Default)]
pub struct Names {
    slots: HashMap<Name, Slot>,
    /// By their serial numbers, which give listings their order: the newest first.
    order: BTreeMap<u64, Name>,
    /// The serial number of the newest.
    newest: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    what: What,
    /// Given when the name was made, and kept for as long as the name is seen, whatever it names.
    serial: u64,
}

/// What a name in a directory of the upper is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Inode(Ino),
    Whiteout,
}

impl Names {
    pub fn get(&self, name: &[u8]) -> Option<What> {
        self.slots.get(name).map(|slot| slot.what)
    }

    /// Sets what a name is. One that was there already keeps its place in listings; one that nobody saw is new.
    pub fn set(&mut self, name: &Name, what: What) {
        let serial = match self.slots.get(name) {
            Some(Slot { what: What::Inode(_), serial }) => *serial,
            _ => {
                self.remove(name);
                self.newest += 1;
                self.order.insert(self.newest, name.clone());
                self.newest
            }
        };
        self.slots.insert(name.clone(), Slot { what, serial });
    }

    pub fn remove(&mut self, name: &[u8]) {
        if let Some(slot) = self.slots.remove(name) {
            self.order.remove(&slot.serial);
        }
    }

    /// Those that are older than a serial number, the newest first, with theirs.
    pub fn older(&self, serial: u64) -> impl Iterator<Item = (u64, &Name, What)> {
        let older = self.order.range(..serial).rev();
        older.filter_map(|(serial, name)| Some((*serial, name, self.slots.get(name)?.what)))
    }

    pub fn all(&self) -> impl Iterator<Item = (&Name, What)> {
        self.slots.iter().map(|(name, slot)| (name, slot.what))
    }
}

impl Entry {
    pub fn new(kind: Kind, raw: Option<u64>) -> Entry {
        Entry {
            kind,
            raw,
            names: Vec::new(),
            data: Data::Upper,
            capable: true,
            kernel_mtime: None,
            spare: 0,
            linking: false,
            held: None,
            generation: None,
            dir: None,
            locks: Arc::default(),
        }
    }

    pub fn is_removed(&self) -> bool {
        self.names.is_empty()
    }
}

impl Table {
    pub fn get(&self, ino: Ino) -> Option<&Entry> {
        self.entries.get(&ino)
    }

    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Entry> {
        self.entries.get_mut(&ino)
    }

    /// The directories that have not been read.
    pub fn unread(&self) -> Vec<Ino> {
        let is_unread = |entry: &Entry| entry.dir.as_ref().is_some_and(|dir| dir.names.is_none());
        self.entries.iter().filter(|(_, entry)| is_unread(entry)).map(|(ino, _)| *ino).collect()
    }

    pub fn by_raw(&self, raw: u64) -> Option<Ino> {
        self.by_raw.get(&raw).copied()
    }

    pub fn insert(&mut self, ino: Ino, entry: Entry) {
        if let Some(raw) = entry.raw {
            self.by_raw.insert(raw, ino);
        }
        self.entries.insert(ino, entry);
    }

    /// Forgets an inode that has no names.
    pub fn remove(&mut self, ino: Ino) -> Option<Entry> {
        let entry = self.entries.remove(&ino)?;
        if let Some(raw) = entry.raw
            && self.by_raw.get(&raw) == Some(&ino)
        {
            self.by_raw.remove(&raw);
        }
        Some(entry)
    }

    pub fn names(&self, dir: Ino) -> Option<&Names> {
        self.entries.get(&dir)?.dir.as_ref()?.names.as_ref()
    }

    fn names_mut(&mut self, dir: Ino) -> Option<&mut Names> {
        self.entries.get_mut(&dir)?.dir.as_mut()?.names.as_mut()
    }

    pub fn dir_mut(&mut self, dir: Ino) -> Option<&mut Dir> {
        self.entries.get_mut(&dir)?.dir.as_mut()
    }

    /// Gives an inode a name, in place of whatever the directory's part of the upper has there.
    pub fn add_name(&mut self, dir: Ino, name: &Name, ino: Ino) {
        if let Some(names) = self.names_mut(dir) {
            names.set(name, What::Inode(ino));
        }
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.names.push((dir, name.clone()));
        }
    }

    /// Takes a name from an inode; a whiteout stays in its place, or nothing.
    pub fn take_name(&mut self, dir: Ino, name: &Name, ino: Ino, whiteout: bool) {
        self.lose_name(dir, name, ino);
        self.set_hidden(dir, name, whiteout);
    }

    /// Takes a name from an inode that another inode is about to get: the directory has it all the while.
    pub fn lose_name(&mut self, dir: Ino, name: &Name, ino: Ino) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.names.retain(|(d, n)| (*d, n) != (dir, name));
        }
    }

    /// A whiteout, or nothing.
    pub fn set_hidden(&mut self, dir: Ino, name: &Name, whiteout: bool) {
        if let Some(names) = self.names_mut(dir) {
            if whiteout {
                names.set(name, What::Whiteout);
            } else {
                names.remove(name);
            }
        }
    }

    /// Directories have come to a directory, or gone.
    pub fn count_subdirs(&mut self, dir: Ino, change: i32) {
        if let Some(dir) = self.dir_mut(dir) {
            dir.subdirs = dir.subdirs.saturating_add_signed(change);
        }
    }
}

//! The inode table: the in-memory state of the upper directory, that is, its names, their inodes and the lower
//! directories that show through. It holds only what has been loaded. Nothing in this file does I/O; a caller updates
//! the table after its change on disk, so a failed call leaves it as it was.

use crate::backing::Handle;
use crate::fs::Ino;
use crate::handover::Handover;
use crate::meta::{Kind, Time};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use twox_hash::XxHash3_64;

pub use crate::fs::lower_types::Name;

/// The inode table.
#[derive(Default)]
pub struct Table {
    entries: HashMap<Ino, Entry>,
    /// Inode numbers by the backing file system's inode numbers, to recognize hard links.
    by_raw: HashMap<u64, Ino>,
    /// Where the serial numbers of new names are left to the next server of the mount.
    handover: Option<Arc<Handover>>,
}

/// The state of an inode that is in the upper directory, or is the image's and has lost its last name.
pub struct Entry {
    pub kind: Kind,
    /// The backing file system's inode number. `None` for an inode of the image that has lost its last name and may be
    /// open.
    pub raw: Option<u64>,
    /// Its hard links, as far as they have been loaded. Empty for a removed inode.
    pub names: Vec<(Ino, Name)>,
    /// The location of a file's data.
    pub data: Data,
    /// Whether the file may have capabilities, which a write in the upper directory would remove.
    pub capable: bool,
    /// The modification time that the kernel has cached for a file, as far as it is known: from when the kernel created
    /// the file or set the time. A later write-back does not change it.
    pub kernel_mtime: Option<Time>,
    /// Links in the work directory: the backing file system counts them, but they are not names.
    pub spare: u32,
    /// Whether the file does not have all of its links yet: until then it must not be changed.
    pub linking: bool,
    /// The open descriptor of an inode without names.
    pub held: Option<Handle>,
    /// The generation: distinguishes inodes that have the number at different times. Set once it has been needed.
    pub generation: Option<u32>,
    pub dir: Option<Box<Dir>>,
    pub locks: Arc<Locks>,
}

/// The location of a file's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    /// In the upper directory.
    Upper,
    /// In a lower layer: the data of that inode, and its length in bytes.
    Lower(Ino, u64),
    /// In no layer, though the upper directory has attributes only (a broken metacopy).
    Missing,
}

/// The locks of one inode. They are held over system calls, unlike the table's own. Lock order: see the module `union`.
#[derive(Default)]
pub struct Locks {
    /// Directory: held to change its names. File: held to copy its data up.
    pub change: Mutex<()>,
    /// Directory: held to load its names from disk.
    pub load: Mutex<()>,
    /// File: shared by writes; exclusive for setting capabilities, and for writing to a file that has some.
    pub privileges: RwLock<()>,
    /// The number of kernel references to an inode that the image does not have, and [`INHERITED`].
    pub references: AtomicU64,
}

/// The bit of [`Locks::references`] of an inode that the kernel may also have references to that earlier servers of the
/// mount have given; their number is unknown.
pub const INHERITED: u64 = 1 << 63;

/// The state of a directory of the upper.
pub struct Dir {
    /// The lower directory that shows through.
    pub lower: Option<Ino>,
    /// Its names, once loaded.
    pub names: Option<Names>,
    /// The number of subdirectories of the merged directory.
    pub subdirs: u32,
    /// The default ACL, once read.
    pub default_acl: Option<Option<Arc<[u8]>>>,
    /// An inode in it because of which it could not be unloaded.
    pub blocker: Option<Ino>,
}

impl Dir {
    /// The state of a directory with those names, `None` if they have not been loaded.
    pub fn new(lower: Option<Ino>, names: Option<Names>) -> Box<Dir> {
        Box::new(Dir { lower, names, subdirs: 0, default_acl: None, blocker: None })
    }
}

/// The names of a directory of the upper.
#[derive(Default)]
pub struct Names {
    slots: HashMap<Name, Slot>,
    /// Names by serial number, for listings: the newest first.
    order: BTreeMap<u64, Name>,
    /// How many names have got a serial number since the directory was loaded.
    newest: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    what: NameState,
    /// Assigned when the name is created, and kept while the name is visible, whatever inode it refers to.
    serial: u64,
}

/// What a name of a directory of the upper is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameState {
    Inode(Ino),
    Whiteout,
}

/// The first serial number of a name that was created after its directory was loaded. Half of the room that
/// offsets in listings have is below it.
const FIRST_NEW: u64 = 1 << 29;

fn hash(name: &[u8]) -> u64 {
    XxHash3_64::oneshot(name)
}

impl Names {
    pub fn get(&self, name: &[u8]) -> Option<NameState> {
        self.slots.get(name).map(|slot| slot.what)
    }

    /// Enters a name that a directory has when it is loaded. Its serial number is a hash, so that it is the same in the
    /// next server of the mount.
    pub fn load(&mut self, name: &Name, what: NameState) {
        // An object beside a whiteout of the same name comes after it, and counts.
        if let Some(slot) = self.slots.get_mut(name) {
            slot.what = what;
            return;
        }
        let mut serial = hash(name) % FIRST_NEW;
        while self.order.contains_key(&serial) {
            serial = (serial + 1) % FIRST_NEW;
        }
        self.order.insert(serial, name.clone());
        self.slots.insert(name.clone(), Slot { what, serial });
    }

    /// Sets what a name is. A name that exists keeps its offset in listings; a hidden one gets a new serial number,
    /// which is returned.
    pub fn set(&mut self, name: &Name, what: NameState) -> Option<u64> {
        if let Some(Slot { what: state @ NameState::Inode(_), .. }) = self.slots.get_mut(name) {
            *state = what;
            return None;
        }
        self.remove(name);
        let serial = FIRST_NEW + self.newest;
        self.newest += 1;
        self.order.insert(serial, name.clone());
        self.slots.insert(name.clone(), Slot { what, serial });
        Some(serial)
    }

    /// Gives names the serial numbers that they had in the last server, by the names' hashes.
    fn restore(&mut self, serials: &HashMap<u64, u64>) {
        for (name, slot) in &mut self.slots {
            if let Some(serial) = serials.get(&hash(name)) {
                self.order.remove(&slot.serial);
                self.order.insert(*serial, name.clone());
                slot.serial = *serial;
            }
        }
        self.newest = serials.values().max().map_or(self.newest, |newest| newest - FIRST_NEW + 1);
    }

    pub fn remove(&mut self, name: &[u8]) {
        if let Some(slot) = self.slots.remove(name) {
            self.order.remove(&slot.serial);
        }
    }

    /// Returns the names older than a serial number, the newest first, with their serial numbers.
    pub fn older(&self, serial: u64) -> impl Iterator<Item = (u64, &Name, NameState)> {
        let older = self.order.range(..serial).rev();
        older.filter_map(|(serial, name)| Some((*serial, name, self.slots.get(name)?.what)))
    }

    /// Whether a name was created after the directory was loaded. Then loading it again would change the order.
    pub fn has_new(&self) -> bool {
        self.newest > 0
    }

    pub fn all(&self) -> impl Iterator<Item = (&Name, NameState)> {
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

    /// Adds a hard link.
    pub fn add_name(&mut self, dir: Ino, name: Name) {
        // Most inodes have one name, and there may be millions.
        self.names.reserve_exact(1);
        self.names.push((dir, name));
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

    /// Makes a table that leaves to the next server of the mount what it must know.
    pub fn new(handover: Option<Arc<Handover>>) -> Table {
        Table { handover, ..Table::default() }
    }

    /// Takes over the serial numbers of names that the last server has left. All directories are loaded.
    pub fn restore_serials(&mut self) {
        let left = self.handover.as_ref().map(|handover| handover.serials()).unwrap_or_default();
        for (dir, serials) in left {
            if let Some(names) = self.names_mut(dir) {
                names.restore(&serials);
            }
        }
    }

    /// Notes that earlier servers of the mount may have given references to all inodes.
    pub fn inherit(&self) {
        for entry in self.entries.values() {
            entry.locks.references.fetch_or(INHERITED, Ordering::Relaxed);
        }
    }

    /// Returns the directories that have not been loaded.
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

    /// Removes an inode that has no names.
    pub fn remove(&mut self, ino: Ino) -> Option<Entry> {
        let entry = self.entries.remove(&ino)?;
        if let Some(raw) = entry.raw
            && self.by_raw.get(&raw) == Some(&ino)
        {
            self.by_raw.remove(&raw);
        }
        Some(entry)
    }

    /// Removes the names of a directory, which can be loaded again, and the inodes that have no other name. Returns what
    /// was removed: it may be much, so it should be freed after the table's lock is released.
    pub fn unload(&mut self, dir: Ino) -> (Option<Names>, Vec<(Ino, Entry)>) {
        let Some(names) = self.dir_mut(dir).and_then(|here| here.names.take()) else { return (None, Vec::new()) };
        if let Some(handover) = self.handover.as_ref().filter(|_| names.has_new()) {
            handover.drop_serials(dir);
        }
        let mut removed = Vec::new();
        for (name, what) in names.all() {
            let NameState::Inode(ino) = what else { continue };
            self.lose_name(dir, name, ino);
            if self.get(ino).is_some_and(Entry::is_removed) {
                removed.extend(self.remove(ino).map(|entry| (ino, entry)));
            }
        }
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
            self.by_raw.shrink_to(self.by_raw.len() * 2);
        }
        (Some(names), removed)
    }

    pub fn names(&self, dir: Ino) -> Option<&Names> {
        self.entries.get(&dir)?.dir.as_ref()?.names.as_ref()
    }

    fn names_mut(&mut self, dir: Ino) -> Option<&mut Names> {
        self.entries.get_mut(&dir)?.dir.as_mut()?.names.as_mut()
    }

    pub fn dir_mut(&mut self, dir: Ino) -> Option<&mut Dir> {
        self.entries.get_mut(&dir)?.dir.as_deref_mut()
    }

    /// Adds a name to an inode, in place of whatever the upper has under it.
    pub fn add_name(&mut self, dir: Ino, name: &Name, ino: Ino) {
        let serial = self.names_mut(dir).and_then(|names| names.set(name, NameState::Inode(ino)));
        if let (Some(handover), Some(serial)) = (&self.handover, serial) {
            handover.leave_serial(dir, hash(name), serial);
        }
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.add_name(dir, name.clone());
        }
    }

    /// Removes a name from an inode, and leaves a whiteout or nothing.
    pub fn take_name(&mut self, dir: Ino, name: &Name, ino: Ino, whiteout: bool) {
        self.lose_name(dir, name, ino);
        self.set_hidden(dir, name, whiteout);
    }

    /// Removes a name from an inode that another inode is about to take: the directory keeps the name.
    pub fn lose_name(&mut self, dir: Ino, name: &Name, ino: Ino) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.names.retain(|(d, n)| (*d, n) != (dir, name));
        }
    }

    /// Sets a name to a whiteout, or to nothing.
    pub fn set_hidden(&mut self, dir: Ino, name: &Name, whiteout: bool) {
        if let Some(names) = self.names_mut(dir) {
            if whiteout {
                names.set(name, NameState::Whiteout);
            } else {
                names.remove(name);
            }
        }
    }

    /// Adds `change` to the number of subdirectories.
    pub fn count_subdirs(&mut self, dir: Ino, change: i32) {
        if let Some(dir) = self.dir_mut(dir) {
            dir.subdirs = dir.subdirs.saturating_add_signed(change);
        }
    }
}

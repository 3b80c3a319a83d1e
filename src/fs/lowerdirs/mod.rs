//! Merged lower directories (`lowerdir=`): each directory is loaded at its first lookup, and cached for the life of the
//! mount.
//!
//! # Inode numbers
//!
//! An inode number is that of the underlying file system, with the index of the file system in the upper bits where
//! there are several; so numbers are the same at every mount, and hard links share one. Hard links are recognized by
//! stat(2), for some file systems list other numbers than they report. An inode that cannot have such a number gets a
//! transient one from a separate range, for this mount only. File handles outlive mounts: the generation tells whether
//! a number was given by this mount, or by one of the same layers.
//!
//! # Locks
//!
//! `loading`, for loading directories, one at a time; under it the lock of the inode table, which is otherwise held for
//! memory only.

mod load;
mod read;
mod xattr;

use super::attr::{Attr, Statfs};
use super::lower_types::{Item, Name};
use super::{FsError, Ino, ROOT};
use crate::backing::{Backing, Handle, Handles, Object, ReadOnly, Space};
use crate::layer::DirLayer;
use crate::meta::Kind;
use crate::upper::FIRST_OWN;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How many bits of an inode number are the file system's own, where there are several.
const DEVICE_SHIFT: u32 = 48;
/// The number of file systems whose inodes can have persistent numbers.
const MOST_DEVICES: usize = 1 << 11;
/// The first inode number that is valid for this mount only.
const FIRST_TRANSIENT: u64 = 1 << 60;

/// The lower directories and their inode table.
pub struct LowerDirs {
    /// The layers, the bottom one first.
    layers: Vec<DirLayer>,
    root: Arc<Dir>,
    table: RwLock<Table>,
    /// Held while a directory is loaded.
    loading: Mutex<()>,
    all_loaded: AtomicBool,
    open: Handles,
    static_nlink: bool,
    next_source: AtomicU64,
    generations: Generations,
}

/// The generations of inode numbers, which distinguish inodes with one number in different mounts.
struct Generations {
    /// For persistent numbers: derived from the identities of the layers, so that other layers have another one.
    persistent: u32,
    /// For numbers that are valid for this mount only.
    transient: u32,
}

/// The inodes that have been loaded.
#[derive(Default)]
struct Table {
    nodes: HashMap<Ino, Node>,
    /// The other names of files with several hard links.
    more: HashMap<Ino, Vec<Place>>,
    /// The file systems, by device number (`st_dev`).
    devices: Vec<u64>,
    /// Transient numbers, by file system and inode number there.
    transient_by: HashMap<(usize, u64), Ino>,
    transient: u64,
}

#[derive(Clone)]
enum Node {
    Dir(Arc<Dir>),
    Leaf(Arc<Leaf>),
}

/// A directory.
pub struct Dir {
    ino: Ino,
    parent: Ino,
    name: Name,
    /// The directories under its name in the layers, the topmost first: all that may be its sources.
    candidates: Vec<Source>,
    loaded: OnceLock<Loaded>,
    references: AtomicU64,
}

/// The content of a loaded directory.
struct Loaded {
    /// The directories of the layers that are merged into it, the topmost first.
    sources: Vec<Source>,
    entries: Entries,
    subdirs: u32,
}

/// A directory of one layer.
#[derive(Clone)]
struct Source {
    layer: usize,
    path: Arc<[u8]>,
    /// The key of its open descriptor.
    id: u64,
}

/// An inode that is not a directory.
struct Leaf {
    kind: Kind,
    place: Place,
    references: AtomicU64,
}

/// A name: its directory, its index there, and the source that contains it.
#[derive(Clone)]
struct Place {
    dir: Arc<Dir>,
    name: Name,
    source: Source,
}

/// Directory entries, sorted by name.
#[derive(Default)]
pub struct Entries(Vec<Entry>);

struct Entry {
    name: Name,
    ino: AtomicU64,
    kind: Kind,
}

impl Entries {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the entry at an index.
    pub fn get(&self, at: usize) -> Item<'_> {
        let Entry { name, ino, kind } = &self.0[at];
        Item { name, ino: ino.load(Ordering::Relaxed), kind: *kind }
    }

    fn find(&self, name: &[u8]) -> Option<&Entry> {
        let at = self.0.binary_search_by(|entry| (*entry.name).cmp(name)).ok()?;
        Some(&self.0[at])
    }
}

impl Dir {
    /// Returns the entries. The directory is loaded: [`LowerDirs::listing`] returns no other.
    pub fn entries(&self) -> &Entries {
        static NONE: Entries = Entries(Vec::new());
        self.loaded.get().map_or(&NONE, |loaded| &loaded.entries)
    }
}

impl Node {
    fn kind(&self) -> Kind {
        match self {
            Node::Dir(_) => Kind::Dir,
            Node::Leaf(leaf) => leaf.kind,
        }
    }

    fn references(&self) -> &AtomicU64 {
        match self {
            Node::Dir(dir) => &dir.references,
            Node::Leaf(leaf) => &leaf.references,
        }
    }
}

/// Options of [`LowerDirs::open`].
pub struct Options {
    /// The layers, the topmost first.
    pub layers: Vec<PathBuf>,
    /// Whether every directory reports a link count of 1.
    pub static_nlink: bool,
    /// The limit of cached open descriptors.
    pub descriptors: usize,
}

impl LowerDirs {
    /// Opens the layers. The error names the layer that cannot be opened.
    pub fn open(options: &Options) -> Result<LowerDirs, (PathBuf, io::Error)> {
        let open = |path: &PathBuf| DirLayer::open(Path::new(path)).map_err(|e| (path.clone(), e));
        let layers: Vec<DirLayer> = options.layers.iter().rev().map(open).collect::<Result<_, _>>()?;
        let source = |layer: usize| Source { layer, path: Arc::from(&b""[..]), id: layer as u64 };
        let root = Arc::new(Dir {
            ino: ROOT,
            parent: ROOT,
            name: Arc::from(&b""[..]),
            candidates: (0..layers.len()).rev().map(source).collect(),
            loaded: OnceLock::new(),
            references: AtomicU64::new(0),
        });
        let mut table = Table::default();
        for (layer, path) in layers.iter().zip(options.layers.iter().rev()) {
            let dev = ReadOnly.stat(layer.root()).map_err(|e| (path.clone(), e))?.dev;
            table.device(dev);
        }
        table.nodes.insert(ROOT, Node::Dir(root.clone()));
        let generations = Generations::of(&layers);
        Ok(LowerDirs {
            generations,
            next_source: AtomicU64::new(layers.len() as u64),
            layers,
            root,
            table: RwLock::new(table),
            loading: Mutex::default(),
            all_loaded: AtomicBool::new(false),
            open: Handles::new(options.descriptors),
            static_nlink: options.static_nlink,
        })
    }

    /// Returns an inode's generation, which distinguishes it from inodes with the same number in other mounts. The
    /// root's is 0, as FUSE requires. The user must not change the layers between mounts, as with kernel overlayfs.
    pub fn generation(&self, ino: Ino) -> u32 {
        match ino {
            ROOT => 0,
            FIRST_TRANSIENT.. => self.generations.transient,
            _ => self.generations.persistent,
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read()
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write()
    }

    fn node(&self, ino: Ino) -> Result<Node, FsError> {
        self.table().nodes.get(&ino).cloned().ok_or(FsError::Stale(ino))
    }

    fn dir(&self, ino: Ino) -> Result<Arc<Dir>, FsError> {
        match self.node(ino)? {
            Node::Dir(dir) => Ok(dir),
            Node::Leaf(_) => Err(FsError::NotDir),
        }
    }

    /// Whether every directory reports a link count of 1.
    pub fn has_static_nlink(&self) -> bool {
        self.static_nlink
    }

    /// Whether the inode number is known.
    pub fn has(&self, ino: Ino) -> bool {
        self.table().nodes.contains_key(&ino)
    }

    /// Whether an object that carries the number can be the copy-up of an inode of the layers: no visible inode may
    /// have it.
    pub fn accepts(&self, ino: Ino, kind: Kind) -> bool {
        let could_be = ino < FIRST_OWN || (1 << DEVICE_SHIFT..FIRST_TRANSIENT).contains(&ino);
        could_be
            && self.table().nodes.get(&ino).is_none_or(|node| {
                node.kind() == kind && kind != Kind::Dir && node.references().load(Ordering::Relaxed) == 0
            })
    }

    /// Assigns a new inode number to the object at `name`.
    pub fn renumber(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        let listing = self.listing(dir)?;
        let entry = listing.entries().find(name).ok_or(FsError::NotFound)?;
        let mut table = self.table_mut();
        let old = entry.ino.load(Ordering::Relaxed);
        let node = table.nodes.get(&old).cloned().ok_or(FsError::Stale(old))?;
        let ino = table.transient();
        let node = match node {
            Node::Dir(dir) => Node::Dir(Arc::new(Dir {
                ino,
                parent: dir.parent,
                name: dir.name.clone(),
                candidates: dir.candidates.clone(),
                loaded: OnceLock::new(),
                references: AtomicU64::new(0),
            })),
            Node::Leaf(leaf) => {
                let place = Place { dir: listing.clone(), name: entry.name.clone(), source: leaf.place.source.clone() };
                let here = |place: &&Place| place.dir.ino == dir && *place.name == *name;
                let place = table.more.get(&old).and_then(|more| more.iter().find(here).cloned()).unwrap_or(place);
                Node::Leaf(Arc::new(Leaf { kind: leaf.kind, place, references: AtomicU64::new(0) }))
            }
        };
        table.nodes.insert(ino, node);
        entry.ino.store(ino, Ordering::Relaxed);
        Ok(ino)
    }

    /// Returns an inode's kind.
    pub fn kind(&self, ino: Ino) -> Result<Kind, FsError> {
        Ok(self.node(ino)?.kind())
    }

    /// Runs `with` on an inode's kernel reference count.
    pub fn references<T>(&self, ino: Ino, with: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        self.table().nodes.get(&ino).map(|node| with(node.references()))
    }

    /// Finds `name` in the directory `dir`.
    pub fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        let listing = self.listing(dir)?;
        Ok(listing.entries().find(name).map(|entry| entry.ino.load(Ordering::Relaxed)))
    }

    /// Returns the parent of the directory `ino`; the root is its own parent.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        Ok(self.dir(ino)?.parent)
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        match self.node(ino)? {
            Node::Dir(dir) => {
                let top = &dir.candidates[0];
                let object = self.layers[top.layer].object(self.handle(top)?.as_fd())?;
                Ok(Attr::of(ino, &object, self.links(&dir, &object)?))
            }
            Node::Leaf(leaf) => {
                let object = self.object_at(&leaf.place)?;
                Ok(Attr::of(ino, &object, object.raw.nlink))
            }
        }
    }

    fn object_at(&self, place: &Place) -> Result<Object, FsError> {
        let dir = self.handle(&place.source)?;
        Ok(self.layers[place.source.layer].object_at(dir.as_fd(), &place.name)?)
    }

    /// Returns a directory's link count. A directory of the bottom layer only need not be loaded for it.
    fn links(&self, dir: &Arc<Dir>, object: &Object) -> Result<u32, FsError> {
        if self.static_nlink {
            return Ok(1);
        }
        if dir.candidates[0].layer == 0 && dir.loaded.get().is_none() {
            return Ok(object.raw.nlink);
        }
        Ok(2 + self.loaded(dir)?.subdirs)
    }

    /// Returns the number of subdirectories of a directory.
    pub fn subdirs(&self, dir: Ino) -> Result<u32, FsError> {
        Ok(self.loaded(&self.dir(dir)?)?.subdirs)
    }

    /// Returns all names of an inode, each with its directory. For a file with several hard links all directories are
    /// loaded, for the links may be anywhere.
    pub fn names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        let leaf = match self.node(ino)? {
            Node::Dir(_) if ino == ROOT => return Ok(Vec::new()),
            Node::Dir(dir) => return Ok(vec![(dir.parent, dir.name.clone())]),
            Node::Leaf(leaf) => leaf,
        };
        let first = (leaf.place.dir.ino, leaf.place.name.clone());
        if self.object_at(&leaf.place)?.raw.nlink < 2 {
            return Ok(vec![first]);
        }
        self.load_all()?;
        let table = self.table();
        let more = table.more.get(&ino).map_or(&[][..], Vec::as_slice);
        Ok(std::iter::once(first).chain(more.iter().map(|place| (place.dir.ino, place.name.clone()))).collect())
    }

    /// Returns the open descriptor of a layer's directory.
    fn handle(&self, source: &Source) -> Result<Handle, FsError> {
        let key = source.id << 1 | 1;
        if let Some(open) = self.open.get(key) {
            return Ok(open);
        }
        let opened = self.layers[source.layer].open_dir(&source.path)?;
        self.open.put(key, opened.clone());
        Ok(opened)
    }

    /// Returns the size of the file system of the topmost layer; nothing of it is free.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        Ok(match self.layers.last() {
            Some(top) => ReadOnly.space(top.root())?,
            None => Space::default(),
        }
        .into())
    }
}

impl Generations {
    fn of(layers: &[DirLayer]) -> Generations {
        // On a file system without file handles, inode numbers alone identify the layers.
        let number = |layer: &DirLayer| ReadOnly.stat(layer.root()).map_or(0, |raw| raw.ino as u32);
        let of = |layer: &DirLayer| ReadOnly.generation(layer.root(), b"").unwrap_or_else(|_| number(layer));
        let persistent = layers.iter().fold(0, |sum: u32, layer| sum.rotate_left(5) ^ of(layer));
        Generations { persistent, transient: RandomState::new().hash_one(persistent) as u32 }
    }
}

impl Table {
    /// Returns the index of a file system, adding it if it is new.
    fn device(&mut self, dev: u64) -> usize {
        match self.devices.iter().position(|known| *known == dev) {
            Some(at) => at,
            None => {
                self.devices.push(dev);
                self.devices.len() - 1
            }
        }
    }

    /// Returns the transient number of a file that may have several hard links, by its number in the underlying file
    /// system.
    fn transient_for(&mut self, below: (usize, u64)) -> Ino {
        let ino = self.transient();
        self.transient_by.insert(below, ino);
        ino
    }

    /// Allocates a transient number.
    fn transient(&mut self) -> Ino {
        self.transient += 1;
        FIRST_TRANSIENT + self.transient
    }
}

/// Returns the persistent number of an inode on the file system with index `device`, if it can have one.
fn persistent(device: usize, ino: u64) -> Option<Ino> {
    match device {
        0 => (ino > ROOT && ino < FIRST_OWN).then_some(ino),
        at => (at < MOST_DEVICES && ino < 1 << DEVICE_SHIFT).then_some((at as u64) << DEVICE_SHIFT | ino),
    }
}

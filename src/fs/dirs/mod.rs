//! Plain directories, merged: each directory is read when it is first looked at, and what is seen of its layers is kept
//! for as long as the mount.
//!
//! # Inode numbers
//!
//! They are those of the file system that the layers are on, with the number of the file system before them where there
//! are several; so they are the same at every mount, and the names of a hard-linked file share one. Which names those are
//! is asked of the file system itself, for some list other numbers than they show. What cannot have such a number gets
//! one from a range of its own, for this mount only. File handles outlive mounts: the generation tells them whether a
//! number is one that this mount, or one of the same layers, has given.
//!
//! # Locks
//!
//! One for reading directories, one at a time; under it the table of inodes, which is otherwise held for memory only.

mod load;
mod read;
mod xattr;

use super::attr::{Attr, Statfs};
use super::lower::{Item, Name};
use super::{FsError, Ino, ROOT};
use crate::backing::{Backing, Handle, Handles, Object, Space, Still};
use crate::layer::DirLayer;
use crate::meta::Kind;
use crate::upper::FIRST_OWN;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How many bits of a number are the file system's own, where there are several.
const DEVICE_SHIFT: u32 = 48;
/// So many file systems have numbers that last.
const MOST_DEVICES: usize = 1 << 11;
/// From here on are numbers for this mount only.
const FIRST_PASSING: u64 = 1 << 60;

/// The layers, and what is known of them.
pub struct Dirs {
    /// The bottom one first.
    layers: Vec<DirLayer>,
    root: Arc<Dir>,
    table: RwLock<Table>,
    /// Held while a directory is read.
    loading: Mutex<()>,
    all_loaded: AtomicBool,
    open: Handles,
    static_nlink: bool,
    next_source: AtomicU64,
    generations: Generations,
}

/// What tells inodes from others that have their numbers in other mounts.
struct Generations {
    /// Of lasting numbers: made of the identities of the layers, so that it is another one with other layers.
    lasting: u32,
    /// Of numbers that are for this mount only.
    passing: u32,
}

/// The inodes that have been seen.
#[derive(Default)]
struct Table {
    nodes: HashMap<Ino, Node>,
    /// Further names of files that have several.
    more: HashMap<Ino, Vec<Place>>,
    /// The file systems, by their device numbers.
    devices: Vec<u64>,
    /// Numbers for this mount only, by file system and number there.
    passing_by: HashMap<(usize, u64), Ino>,
    passing: u64,
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
    /// What the layers have under its name, the topmost first: all those that may make it up.
    candidates: Vec<Source>,
    loaded: OnceLock<Loaded>,
    references: AtomicU64,
}

/// What is in a directory.
struct Loaded {
    /// The layers' directories that make it up, the topmost first.
    sources: Vec<Source>,
    entries: Entries,
    subdirs: u32,
}

/// One layer's directory.
#[derive(Clone)]
struct Source {
    layer: usize,
    path: Arc<[u8]>,
    /// By which its open descriptor is kept.
    id: u64,
}

/// What is no directory.
struct Leaf {
    kind: Kind,
    place: Place,
    references: AtomicU64,
}

/// A name: in which directory, as which of its entries, and in which of its layers.
#[derive(Clone)]
struct Place {
    dir: Arc<Dir>,
    name: Name,
    source: Source,
}

/// Entries, sorted by name.
#[derive(Default)]
pub struct Entries(Vec<Entry>);

struct Entry {
    name: Name,
    ino: AtomicU64,
    kind: Kind,
}

impl Entries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The one at a place.
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
    /// Its entries. It has been read: [`Dirs::listing`] gives no other.
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

/// How directories are shown.
pub struct Options {
    /// The layers, the topmost first.
    pub layers: Vec<PathBuf>,
    /// Whether every directory has one link.
    pub static_nlink: bool,
    /// How many descriptors may be kept open.
    pub descriptors: usize,
}

impl Dirs {
    /// Opens the layers. An error names the one that cannot be opened.
    pub fn open(options: &Options) -> Result<Dirs, (PathBuf, io::Error)> {
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
            let dev = Still.stat(layer.root()).map_err(|e| (path.clone(), e))?.dev;
            table.device(dev);
        }
        table.nodes.insert(ROOT, Node::Dir(root.clone()));
        let generations = Generations::of(&layers);
        Ok(Dirs {
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

    /// What tells an inode from others that have its number in other mounts. The root's is 0, as FUSE has it. That the
    /// layers do not change between mounts is up to the user, as with kernel overlayfs.
    pub fn generation(&self, ino: Ino) -> u32 {
        match ino {
            ROOT => 0,
            FIRST_PASSING.. => self.generations.passing,
            _ => self.generations.lasting,
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether every directory is said to have one link.
    pub fn has_static_nlink(&self) -> bool {
        self.static_nlink
    }

    /// Whether the number is known to be one of the layers'.
    pub fn has(&self, ino: Ino) -> bool {
        self.table().nodes.contains_key(&ino)
    }

    /// Whether an object that carries the number can be what was copied up from here: nothing that is seen has it.
    pub fn accepts(&self, ino: Ino, kind: Kind) -> bool {
        let could_be = ino < FIRST_OWN || (1 << DEVICE_SHIFT..FIRST_PASSING).contains(&ino);
        could_be
            && self.table().nodes.get(&ino).is_none_or(|node| {
                node.kind() == kind && kind != Kind::Dir && node.references().load(Ordering::Relaxed) == 0
            })
    }

    /// Gives what has that name a number of its own.
    pub fn renumber(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        let listing = self.listing(dir)?;
        let entry = listing.entries().find(name).ok_or(FsError::NotFound)?;
        let mut table = self.table_mut();
        let old = entry.ino.load(Ordering::Relaxed);
        let node = table.nodes.get(&old).cloned().ok_or(FsError::Stale(old))?;
        let ino = table.passing();
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

    /// An inode's kind.
    pub fn kind(&self, ino: Ino) -> Result<Kind, FsError> {
        Ok(self.node(ino)?.kind())
    }

    /// How many references the kernel holds to an inode.
    pub fn references<T>(&self, ino: Ino, with: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        self.table().nodes.get(&ino).map(|node| with(node.references()))
    }

    /// The inode that `name` is in the directory `dir`.
    pub fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>, FsError> {
        let listing = self.listing(dir)?;
        Ok(listing.entries().find(name).map(|entry| entry.ino.load(Ordering::Relaxed)))
    }

    /// The directory that holds the directory `ino`; the root holds itself.
    pub fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        Ok(self.dir(ino)?.parent)
    }

    /// An inode's attributes.
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

    /// The links of a directory. One that only the bottom layer has need not be read for that.
    fn links(&self, dir: &Arc<Dir>, object: &Object) -> Result<u32, FsError> {
        if self.static_nlink {
            return Ok(1);
        }
        if dir.candidates[0].layer == 0 && dir.loaded.get().is_none() {
            return Ok(object.raw.nlink);
        }
        Ok(2 + self.loaded(dir)?.subdirs)
    }

    /// How many directories a directory has in it.
    pub fn subdirs(&self, dir: Ino) -> Result<u32, FsError> {
        Ok(self.loaded(&self.dir(dir)?)?.subdirs)
    }

    /// All names of an inode, each with the directory that it is in. Of a file that has several links everything must be
    /// read, for they may be anywhere.
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

    /// The open descriptor of a layer's directory.
    fn handle(&self, source: &Source) -> Result<Handle, FsError> {
        let key = source.id << 1 | 1;
        if let Some(open) = self.open.get(key) {
            return Ok(open);
        }
        let opened = self.layers[source.layer].open_dir(&source.path)?;
        self.open.put(key, opened.clone());
        Ok(opened)
    }

    /// The size of the file system that the topmost layer is on; nothing of it is free.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        Ok(match self.layers.last() {
            Some(top) => Still.space(top.root())?,
            None => Space::default(),
        }
        .into())
    }
}

impl Generations {
    fn of(layers: &[DirLayer]) -> Generations {
        // Where a file system has no handles, the numbers of its inodes alone must tell.
        let number = |layer: &DirLayer| Still.stat(layer.root()).map_or(0, |raw| raw.ino as u32);
        let of = |layer: &DirLayer| Still.generation(layer.root(), b"").unwrap_or_else(|_| number(layer));
        let lasting = layers.iter().fold(0, |sum: u32, layer| sum.rotate_left(5) ^ of(layer));
        Generations { lasting, passing: RandomState::new().hash_one(lasting) as u32 }
    }
}

impl Table {
    /// The place of a file system among those that are known.
    fn device(&mut self, dev: u64) -> usize {
        match self.devices.iter().position(|known| *known == dev) {
            Some(at) => at,
            None => {
                self.devices.push(dev);
                self.devices.len() - 1
            }
        }
    }

    /// A number for this mount only of a file that may have further names, by its number below.
    fn passing_for(&mut self, below: (usize, u64)) -> Ino {
        let ino = self.passing();
        self.passing_by.insert(below, ino);
        ino
    }

    /// A number for this mount only.
    fn passing(&mut self) -> Ino {
        self.passing += 1;
        FIRST_PASSING + self.passing
    }
}

/// The lasting number of an inode of a file system, which is known by its place, if it can have one.
fn lasting(device: usize, ino: u64) -> Option<Ino> {
    match device {
        0 => (ino > ROOT && ino < FIRST_OWN).then_some(ino),
        at => (at < MOST_DEVICES && ino < 1 << DEVICE_SHIFT).then_some((at as u64) << DEVICE_SHIFT | ino),
    }
}

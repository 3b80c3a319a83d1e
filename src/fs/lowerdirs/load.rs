//! Loading of merged lower directories: entries, whiteouts, opaque directories, redirects and inode numbers.

use super::{Dir, Entries, Entry, Leaf, Loaded, LowerDirs, Node, Place, Source, persistent};
use crate::fs::lower_types::Name;
use crate::fs::{FsError, Ino};
use crate::layer::{self, DirContents};
use crate::meta::Kind;
use crate::tree::rule::{self, Has, Seen};
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A name in one of a directory's sources.
struct Named {
    name: Vec<u8>,
    /// The index of the source: a smaller one is a higher layer.
    rank: usize,
    ino: u64,
    /// The kind; `None` for a whiteout.
    kind: Option<Kind>,
    /// Whether a directory hides what lower layers have under the name.
    opaque: bool,
}

/// The sources of a directory and their entries.
struct Read {
    sources: Vec<Source>,
    devices: Vec<u64>,
    names: Vec<Named>,
}

/// The target of a redirect in the layers below; the topmost first.
pub(super) struct Moved {
    pub kind: Kind,
    /// For a directory: its directories in those layers.
    sources: Vec<Source>,
    /// The parent directories in those layers, without the ones above the visible entry.
    pub holders: Vec<Source>,
}

impl Read {
    fn add(&mut self, source: Source, contents: DirContents) {
        let rank = self.sources.len();
        let named = |e: layer::DirEntry| Named { name: e.name, rank, ino: e.ino, kind: e.kind, opaque: e.opaque };
        self.names.extend(contents.entries.into_iter().map(named));
        self.devices.push(contents.dev);
        self.sources.push(source);
    }

    fn sorted(mut self) -> Read {
        self.names.sort_unstable_by(|a, b| (&a.name, a.rank).cmp(&(&b.name, b.rank)));
        self
    }
}

impl LowerDirs {
    /// Returns a loaded directory.
    pub fn listing(&self, ino: Ino) -> Result<Arc<Dir>, FsError> {
        let dir = self.dir(ino)?;
        self.loaded(&dir)?;
        Ok(dir)
    }

    pub(super) fn loaded<'a>(&self, dir: &'a Arc<Dir>) -> Result<&'a Loaded, FsError> {
        if let Some(loaded) = dir.loaded.get() {
            return Ok(loaded);
        }
        let _loading = self.loading.lock();
        if let Some(loaded) = dir.loaded.get() {
            return Ok(loaded);
        }
        let read = self.read_sources(&dir.candidates, &self.sources_of_parent(dir)?)?;
        let loaded = self.merge(dir, read)?;
        Ok(dir.loaded.get_or_init(|| loaded))
    }

    /// Returns the sources of a directory's parent. The parent has been loaded, since names are found only through it.
    fn sources_of_parent(&self, dir: &Dir) -> Result<Vec<Source>, FsError> {
        let parent = self.dir(dir.parent)?;
        Ok(parent.loaded.get().map_or_else(Vec::new, |loaded| loaded.sources.clone()))
    }

    /// Loads all directories.
    pub fn load_all(&self) -> Result<(), FsError> {
        if self.all_loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut left = VecDeque::from([self.root.clone()]);
        while let Some(dir) = left.pop_front() {
            self.loaded(&dir)?;
            let entries = dir.entries();
            for item in (0..entries.len()).map(|at| entries.get(at)).filter(|item| item.kind == Kind::Dir) {
                left.push_back(self.dir(item.ino)?);
            }
        }
        self.all_loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// Reads the directories of several layers, the topmost first, down to the first opaque one. A redirect tells where
    /// the layers below have a moved directory; `holders` are the parent directories.
    fn read_sources(&self, candidates: &[Source], holders: &[Source]) -> Result<Read, FsError> {
        let mut read = Read { sources: Vec::new(), devices: Vec::new(), names: Vec::new() };
        let mut left: VecDeque<Source> = candidates.iter().cloned().collect();
        let mut holders = Cow::Borrowed(holders);
        while let Some(source) = left.pop_front() {
            let contents = self.contents(&source)?;
            if let Some(redirect) = &contents.redirect {
                let found = self.moved(source.layer, &holders, redirect)?.filter(|found| found.kind == Kind::Dir);
                left = VecDeque::new();
                if let Some(found) = found {
                    (left, holders) = (found.sources.into(), Cow::Owned(found.holders));
                }
            }
            let opaque = contents.opaque;
            read.add(source, contents);
            if opaque {
                break;
            }
        }
        Ok(read.sorted())
    }

    fn contents(&self, source: &Source) -> Result<DirContents, FsError> {
        Ok(self.layers[source.layer].read_dir(self.handle(source)?.as_fd())?)
    }

    /// Resolves a redirect of the layer `layer` in the layers below it: an absolute path from the root, or a name in
    /// the same directory, whose sources are `holders`.
    pub(super) fn moved(&self, layer: usize, holders: &[Source], redirect: &[u8]) -> Result<Option<Moved>, FsError> {
        let below = |all: &[Source]| all.iter().filter(|source| source.layer < layer).cloned().collect::<Vec<_>>();
        if !redirect.starts_with(b"/") {
            return self.named(below(holders), redirect);
        }
        let mut at = Moved { kind: Kind::Dir, sources: below(&self.root.candidates), holders: Vec::new() };
        for part in redirect.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            if at.kind != Kind::Dir {
                return Ok(None);
            }
            let dirs = self.read_sources(&at.sources, &at.holders)?.sources;
            let Some(next) = self.named(dirs, part)? else { return Ok(None) };
            at = next;
        }
        Ok(Some(at))
    }

    /// Merges one name of the directories that make up a merged directory, the topmost first.
    fn named(&self, mut holders: Vec<Source>, name: &[u8]) -> Result<Option<Moved>, FsError> {
        let mut read = Read { sources: Vec::new(), devices: Vec::new(), names: Vec::new() };
        for source in &holders {
            let mut contents = self.contents(source)?;
            contents.entries.retain(|entry| entry.name == name);
            read.add(source.clone(), contents);
        }
        let read = read.sorted();
        let Some((kind, sources)) = self.seen(&read.sources, &read.names)? else { return Ok(None) };
        if kind != Kind::Dir {
            holders.drain(..read.names[0].rank);
        }
        Ok(Some(Moved { kind, sources, holders }))
    }

    /// Merges the entries of one name. Returns its kind, and for a directory its sources, for anything else the source
    /// that contains it.
    fn seen(&self, sources: &[Source], group: &[Named]) -> Result<Option<(Kind, Vec<Source>)>, FsError> {
        let has = |named: &Named| match named.kind {
            None => Has::Whiteout,
            Some(Kind::Dir) => Has::Dir { bare: false },
            Some(_) => Has::Other,
        };
        match rule::seen::<FsError>(group.iter().map(|named| Ok(has(named))))? {
            Seen::Nothing => Ok(None),
            Seen::Other(which) => {
                let named = &group[which];
                Ok(named.kind.map(|kind| (kind, vec![sources[named.rank].clone()])))
            }
            Seen::Dir => {
                let dirs = group.iter().take_while(|named| named.kind == Some(Kind::Dir)).count();
                let last = group[..dirs].iter().position(|named| named.opaque).map_or(dirs, |at| at + 1);
                let at = |named: &Named| self.source_in(&sources[named.rank], &named.name);
                Ok(Some((Kind::Dir, group[..last].iter().map(at).collect())))
            }
        }
    }

    fn source_in(&self, parent: &Source, name: &[u8]) -> Source {
        let path = if parent.path.is_empty() { name.to_vec() } else { [&parent.path, &b"/"[..], name].concat() };
        Source { layer: parent.layer, path: path.into(), id: self.next_source.fetch_add(1, Ordering::Relaxed) }
    }

    /// Merges the entries that were read, and assigns inode numbers. The caller holds `loading`.
    fn merge(&self, dir: &Arc<Dir>, read: Read) -> Result<Loaded, FsError> {
        let devices: Vec<usize> = {
            let mut table = self.table_mut();
            read.devices.iter().map(|dev| table.device(*dev)).collect()
        };
        let (mut entries, mut subdirs) = (Vec::new(), 0);
        let mut fresh: HashMap<Ino, Node> = HashMap::new();
        let mut more: Vec<(Ino, Place)> = Vec::new();
        for group in read.names.chunk_by(|a, b| a.name == b.name) {
            let Some((kind, sources)) = self.seen(&read.sources, group)? else { continue };
            let name: Name = Arc::from(&*group[0].name);
            let named = &group[0];
            let persistent = persistent(devices[named.rank], named.ino);
            let ino = if kind == Kind::Dir {
                subdirs += 1;
                let taken = |ino: &Ino| fresh.contains_key(ino) || self.has(*ino);
                let ino = persistent.filter(|ino| !taken(ino)).unwrap_or_else(|| self.table_mut().transient());
                let (loaded, references) = (OnceLock::new(), AtomicU64::new(0));
                let child = Dir { ino, parent: dir.ino, name: name.clone(), candidates: sources, loaded, references };
                fresh.insert(ino, Node::Dir(Arc::new(child)));
                ino
            } else {
                let place = Place { dir: dir.clone(), name: name.clone(), source: sources[0].clone() };
                let below = (devices[named.rank], named.ino);
                let number = persistent.or_else(|| self.table().transient_by.get(&below).copied());
                let known = number.and_then(|ino| fresh.get(&ino).cloned().or_else(|| self.node(ino).ok()));
                let (ino, linked) = match (number, known) {
                    (Some(ino), None) => (ino, false),
                    (Some(ino), Some(node)) if self.is_same(&node, &place)? => (ino, true),
                    _ => (self.table_mut().transient_for(below), false),
                };
                if linked {
                    more.push((ino, place));
                } else {
                    let leaf = Leaf { kind, place, references: AtomicU64::new(0) };
                    fresh.insert(ino, Node::Leaf(Arc::new(leaf)));
                }
                ino
            };
            entries.push(Entry { name, ino: AtomicU64::new(ino), kind });
        }
        let mut table = self.table_mut();
        table.nodes.extend(fresh);
        for (ino, place) in more {
            table.more.entry(ino).or_default().push(place);
        }
        Ok(Loaded { sources: read.sources, entries: Entries(entries), subdirs })
    }

    /// Whether two names are hard links to one file, by stat(2); the listed inode number is not relied on.
    fn is_same(&self, node: &Node, place: &Place) -> Result<bool, FsError> {
        let Node::Leaf(leaf) = node else { return Ok(false) };
        let (a, b) = (self.object_at(&leaf.place)?, self.object_at(place)?);
        Ok(a.raw.nlink > 1 && a.kind == b.kind && (a.raw.dev, a.raw.ino) == (b.raw.dev, b.raw.ino))
    }
}

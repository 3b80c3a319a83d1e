//! Reading a directory of the layers: what is seen of it, by the one merge rule.

use super::{Dir, Dirs, Entries, Entry, Leaf, Loaded, Node, Place, Source};
use crate::fs::lower::Name;
use crate::fs::{FsError, Ino};
use crate::layer::DirContents;
use crate::meta::Kind;
use crate::tree::rule::{self, Has, Seen};
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

/// A name as one of a directory's sources has it.
struct Named {
    name: Vec<u8>,
    /// The source's place among the sources: the lower, the higher the layer.
    rank: usize,
    ino: u64,
    /// `None` for a whiteout.
    kind: Option<Kind>,
}

/// What the sources of a directory have.
struct Read {
    sources: Vec<Source>,
    devices: Vec<u64>,
    names: Vec<Named>,
}

impl Dirs {
    /// A directory that has been read.
    pub fn listing(&self, ino: Ino) -> Result<Arc<Dir>, FsError> {
        let dir = self.dir(ino)?;
        self.loaded(&dir)?;
        Ok(dir)
    }

    pub(super) fn loaded<'a>(&self, dir: &'a Arc<Dir>) -> Result<&'a Loaded, FsError> {
        if let Some(loaded) = dir.loaded.get() {
            return Ok(loaded);
        }
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = dir.loaded.get() {
            return Ok(loaded);
        }
        let read = self.read_sources(&dir.candidates)?;
        let loaded = self.merge(dir, read)?;
        Ok(dir.loaded.get_or_init(|| loaded))
    }

    /// Reads everything below the root.
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

    /// Reads directories of several layers, the topmost first, down to the first that is opaque. One that was moved says
    /// where the layers below have it.
    fn read_sources(&self, candidates: &[Source]) -> Result<Read, FsError> {
        let mut read = Read { sources: Vec::new(), devices: Vec::new(), names: Vec::new() };
        let mut left: VecDeque<Source> = candidates.iter().cloned().collect();
        while let Some(source) = left.pop_front() {
            let DirContents { entries, opaque, redirect, dev } = self.contents(&source)?;
            let rank = read.sources.len();
            read.names.extend(entries.into_iter().map(|e| Named { name: e.name, rank, ino: e.ino, kind: e.kind }));
            read.devices.push(dev);
            if let Some(redirect) = redirect {
                left = self.redirected(&source, &redirect)?.into();
            }
            read.sources.push(source);
            if opaque {
                break;
            }
        }
        read.names.sort_unstable_by(|a, b| (&a.name, a.rank).cmp(&(&b.name, b.rank)));
        Ok(read)
    }

    fn contents(&self, source: &Source) -> Result<DirContents, FsError> {
        Ok(self.layers[source.layer].read_dir(self.handle(source)?.as_fd())?)
    }

    /// The directories of the layers below one that was moved: at a path from the root, or beside it under another name.
    pub(super) fn redirected(&self, source: &Source, redirect: &[u8]) -> Result<Vec<Source>, FsError> {
        match self.below(source.layer, &target_of(&source.path, redirect))? {
            Some((Kind::Dir, sources)) => Ok(sources),
            _ => Ok(Vec::new()),
        }
    }

    /// What the layers below one have at a path: its kind, and where, the topmost first; of what is no directory the one
    /// that is seen.
    pub(super) fn below(&self, layer: usize, path: &[u8]) -> Result<Option<(Kind, Vec<Source>)>, FsError> {
        let roots: Vec<Source> = self.root.candidates.iter().filter(|source| source.layer < layer).cloned().collect();
        let mut found = (Kind::Dir, roots);
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            if found.0 != Kind::Dir {
                return Ok(None);
            }
            let mut read = self.read_sources(&found.1)?;
            read.names.retain(|named| named.name == part);
            let Some((kind, sources)) = self.seen(&read, &read.names)? else { return Ok(None) };
            found = (kind, sources);
        }
        Ok(Some(found))
    }

    /// What is seen of one name that the sources of a directory have, and where they have it.
    fn seen(&self, read: &Read, group: &[Named]) -> Result<Option<(Kind, Vec<Source>)>, FsError> {
        let has = |named: &Named| match named.kind {
            None => Has::Whiteout,
            Some(Kind::Dir) => Has::Dir { bare: false },
            Some(_) => Has::Other,
        };
        let at = |named: &Named| self.source_in(&read.sources[named.rank], &named.name);
        match rule::seen::<FsError>(group.iter().map(|named| Ok(has(named))))? {
            Seen::Nothing => Ok(None),
            Seen::Other(which) => {
                let named = &group[which];
                Ok(named.kind.map(|kind| (kind, vec![read.sources[named.rank].clone()])))
            }
            Seen::Dir => {
                let dirs = group.iter().take_while(|named| named.kind == Some(Kind::Dir));
                Ok(Some((Kind::Dir, dirs.map(at).collect())))
            }
        }
    }

    fn source_in(&self, parent: &Source, name: &[u8]) -> Source {
        let path = if parent.path.is_empty() { name.to_vec() } else { [&parent.path, &b"/"[..], name].concat() };
        Source { layer: parent.layer, path: path.into(), id: self.next_source.fetch_add(1, Ordering::Relaxed) }
    }

    /// Makes out what is seen of what was read, and gives each inode its number. The caller holds `loading`.
    fn merge(&self, dir: &Arc<Dir>, read: Read) -> Result<Loaded, FsError> {
        let (mut entries, mut subdirs) = (Vec::new(), 0);
        let mut fresh: HashMap<Ino, Node> = HashMap::new();
        let mut more: Vec<(Ino, Place)> = Vec::new();
        for group in read.names.chunk_by(|a, b| a.name == b.name) {
            let Some((kind, sources)) = self.seen(&read, group)? else { continue };
            let name: Name = Arc::from(&*group[0].name);
            let named = group.iter().find(|named| named.kind.is_some()).unwrap_or(&group[0]);
            let lasting = self.table_mut().lasting(read.devices[named.rank], named.ino);
            let ino = if kind == Kind::Dir {
                subdirs += 1;
                let taken = |ino: &Ino| fresh.contains_key(ino) || self.has(*ino);
                let ino = lasting.filter(|ino| !taken(ino)).unwrap_or_else(|| self.table_mut().passing());
                let (loaded, references) = (OnceLock::new(), AtomicU64::new(0));
                let child = Dir { ino, parent: dir.ino, name: name.clone(), candidates: sources, loaded, references };
                fresh.insert(ino, Node::Dir(Arc::new(child)));
                ino
            } else {
                let source = read.sources[named.rank].clone();
                let place = Place { dir: dir.clone(), name: name.clone(), source };
                let known = lasting.and_then(|ino| fresh.get(&ino).cloned().or_else(|| self.node(ino).ok()));
                let (ino, linked) = match (lasting, known) {
                    (Some(ino), None) => (ino, false),
                    (Some(ino), Some(node)) if self.is_same(&node, &place)? => (ino, true),
                    _ => (self.table_mut().passing(), false),
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
        Ok(Loaded { entries: Entries(entries), subdirs })
    }

    /// Whether two names are of one file: the file system says so, whatever number it lists.
    fn is_same(&self, node: &Node, place: &Place) -> Result<bool, FsError> {
        let Node::Leaf(leaf) = node else { return Ok(false) };
        let (a, b) = (self.object_at(&leaf.place)?, self.object_at(place)?);
        Ok(a.raw.nlink > 1 && a.kind == b.kind && (a.raw.dev, a.raw.ino) == (b.raw.dev, b.raw.ino))
    }
}

/// Where a redirect leads that something at a path has: from the root, or to another name in the same directory.
pub(super) fn target_of(path: &[u8], redirect: &[u8]) -> Vec<u8> {
    if redirect.starts_with(b"/") {
        return redirect.to_vec();
    }
    let parent = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |slash| &path[..slash + 1]);
    [parent, redirect].concat()
}

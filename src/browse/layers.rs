//! What each layer of an image does: how many files it adds, changes and removes, and what it does to one path.

use crate::layer::{Index, IndexError, Node, WHITEOUT, node_flags};
use crate::meta::Kind;
use crate::tree::rule::{self, Has};

/// The indexes of an image's layers, bottom first.
pub struct Layers(pub Vec<Index>);

/// How many entries a layer adds, changes and removes. A directory over one of a lower layer counts if its owner, mode
/// or extended attributes change.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Entries that no lower layer shows.
    pub added: u64,
    /// Entries in place of one that a lower layer shows.
    pub changed: u64,
    /// Entries of lower layers that are hidden, with those below a removed directory.
    pub removed: u64,
}

/// What a layer does to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    /// It puts something there where nothing was.
    Added,
    /// It puts something else there, or changes the attributes of a directory.
    Changed,
    /// It hides what was there.
    Removed,
}

/// An inode of a layer: the layer's number, 0 the bottom one, and the inode's in its index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The layer.
    pub layer: usize,
    /// The inode.
    pub node: u32,
}

/// What some layers show under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Nothing,
    Other(Place),
    /// The directories that are merged, the topmost first, and the one with the attributes.
    Dir(Vec<Place>, Option<Place>),
}

impl Seen {
    /// The inode that has the attributes.
    fn place(&self) -> Option<Place> {
        match self {
            Seen::Nothing => None,
            Seen::Other(place) => Some(*place),
            Seen::Dir(sources, attributes) => attributes.or(sources.first().copied()),
        }
    }

    fn sources(&self) -> &[Place] {
        match self {
            Seen::Dir(sources, _) => sources,
            Seen::Nothing | Seen::Other(_) => &[],
        }
    }
}

impl Layers {
    /// Returns an inode.
    pub fn node(&self, place: Place) -> Result<&Node, IndexError> {
        self.0[place.layer].node(place.node)
    }

    /// Counts what a layer does to those below it.
    pub fn counts(&self, layer: usize) -> Result<Counts, IndexError> {
        let mut counts = Counts::default();
        let below = self.root(layer)?;
        // An explicit stack: a tree may be thousands of directories deep.
        let mut todo = vec![(0, below)];
        while let Some((dir, below)) = todo.pop() {
            let index = &self.0[layer];
            let node = index.node(dir)?;
            for entry in index.children(node)? {
                let found = self.find(&below, index.name(entry)?)?;
                let Some(child) = (entry.node.get() != WHITEOUT).then(|| index.node(entry.node.get())).transpose()?
                else {
                    counts.removed += self.size_of(&found)?;
                    continue;
                };
                let is_bare = child.is_dir() && child.has(node_flags::BARE);
                match &found {
                    Seen::Nothing if is_bare => {}
                    Seen::Nothing => counts.added += 1,
                    Seen::Dir(..) if child.is_dir() => counts.changed += u64::from(self.differs(layer, child, &found)?),
                    Seen::Dir(..) => {
                        counts.changed += 1;
                        counts.removed += self.size_of(&found)? - 1;
                    }
                    Seen::Other(_) => counts.changed += 1,
                }
                if child.is_dir() {
                    todo.push((entry.node.get(), found));
                }
            }
            if node.has(node_flags::OPAQUE) {
                counts.removed += self.hidden_by(layer, node, &below)?;
            }
        }
        Ok(counts)
    }

    /// Returns what each layer does to a path, the bottom one first, and what is there afterwards. Layers that do nothing
    /// to it are left out. `path` has no symbolic link or `..` before its end.
    pub fn history(&self, path: &[u8]) -> Result<Vec<(usize, Did, Option<Place>)>, IndexError> {
        let mut history = Vec::new();
        let mut before = None;
        for layer in 0..self.0.len() {
            let now = self.at_path(layer + 1, path)?.place();
            let did = match (before, now) {
                (None, Some(_)) => Did::Added,
                (Some(_), None) => Did::Removed,
                (Some(old), Some(new)) if old != new => Did::Changed,
                _ => continue,
            };
            history.push((layer, did, now));
            before = now;
        }
        Ok(history)
    }

    /// Returns the inode with the data of a file: for a hard link to a file of a lower layer, that one.
    pub fn data_of(&self, mut place: Place) -> Result<Option<Place>, IndexError> {
        loop {
            let node = self.node(place)?;
            if node.kind().is_some() {
                return Ok(Some(place));
            }
            let target = self.0[place.layer].target(node)?;
            match self.at_path(place.layer, target)? {
                Seen::Other(found) => place = found,
                Seen::Nothing | Seen::Dir(..) => return Ok(None),
            }
        }
    }

    /// What the lowest `count` layers show at a path.
    fn at_path(&self, count: usize, path: &[u8]) -> Result<Seen, IndexError> {
        let mut seen = self.root(count)?;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            seen = self.find(&seen, part)?;
        }
        Ok(seen)
    }

    /// The root of the lowest `count` layers.
    fn root(&self, count: usize) -> Result<Seen, IndexError> {
        let found: Vec<Place> = (0..count).rev().map(|layer| Place { layer, node: 0 }).collect();
        self.seen(&found)
    }

    /// What is in a directory under a name.
    fn find(&self, dir: &Seen, name: &[u8]) -> Result<Seen, IndexError> {
        let mut found = Vec::new();
        for place in dir.sources() {
            if let Some(entry) = self.0[place.layer].find(self.node(*place)?, name)? {
                found.push(Place { node: entry.node.get(), ..*place });
            }
        }
        self.seen(&found)
    }

    /// Merges the entries that layers have under one name, the topmost first.
    fn seen(&self, found: &[Place]) -> Result<Seen, IndexError> {
        let has = |place: &Place| {
            if place.node == WHITEOUT {
                return Ok(Has::Whiteout);
            }
            let node = self.node(*place)?;
            Ok(if node.is_dir() { Has::Dir { bare: node.has(node_flags::BARE) } } else { Has::Other })
        };
        Ok(match rule::seen(found.iter().map(has))? {
            rule::Seen::Nothing => Seen::Nothing,
            rule::Seen::Other(at) => Seen::Other(found[at]),
            rule::Seen::Dir => self.merged(found)?,
        })
    }

    /// The directories from the top down to the first that is opaque or the first entry that is not a directory. The
    /// attributes are those of the topmost one with an entry, also if it is below an opaque one.
    fn merged(&self, found: &[Place]) -> Result<Seen, IndexError> {
        let (mut sources, mut attributes, mut is_opaque) = (Vec::new(), None, false);
        for place in found.iter().take_while(|place| place.node != WHITEOUT) {
            let node = self.node(*place)?;
            if !node.is_dir() {
                break;
            }
            if attributes.is_none() && !node.has(node_flags::IMPLICIT) {
                attributes = Some(*place);
            }
            if !is_opaque {
                sources.push(*place);
            }
            is_opaque |= node.has(node_flags::OPAQUE);
        }
        Ok(Seen::Dir(sources, attributes))
    }

    /// Whether a layer's directory has other attributes than the one that it lies over.
    fn differs(&self, layer: usize, dir: &Node, over: &Seen) -> Result<bool, IndexError> {
        if dir.has(node_flags::IMPLICIT) {
            return Ok(false);
        }
        let Some(place) = over.place() else { return Ok(true) };
        let old = self.node(place)?;
        let attributes = |node: &Node| (node.mode.get(), node.uid.get(), node.gid.get());
        if attributes(dir) != attributes(old) {
            return Ok(true);
        }
        let [new, old] = [(layer, dir), (place.layer, old)]
            .map(|(layer, node)| self.0[layer].xattrs(node).and_then(|set| set.collect::<Result<Vec<_>, _>>()));
        Ok(new? != old?)
    }

    /// The number of entries that are shown: an object, and what is below it.
    fn size_of(&self, seen: &Seen) -> Result<u64, IndexError> {
        let (mut count, mut todo) = (0, vec![seen.clone()]);
        while let Some(seen) = todo.pop() {
            if seen == Seen::Nothing {
                continue;
            }
            count += 1;
            for name in self.names(&seen)? {
                todo.push(self.find(&seen, name)?);
            }
        }
        Ok(count)
    }

    /// The names in a directory's sources, sorted, also those that are hidden.
    fn names(&self, dir: &Seen) -> Result<Vec<&[u8]>, IndexError> {
        let mut names = Vec::new();
        for place in dir.sources() {
            let index = &self.0[place.layer];
            for entry in index.children(self.node(*place)?)? {
                names.push(index.name(entry)?);
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The number of entries that an opaque directory hides, but for those that it has a whiteout or an entry for.
    fn hidden_by(&self, layer: usize, dir: &Node, below: &Seen) -> Result<u64, IndexError> {
        let mut count = 0;
        for name in self.names(below)? {
            if self.0[layer].find(dir, name)?.is_none() {
                count += self.size_of(&self.find(below, name)?)?;
            }
        }
        Ok(count)
    }

    /// Whether there is data to hash.
    pub fn is_file(&self, place: Place) -> Result<bool, IndexError> {
        Ok(self.node(place)?.kind() == Some(Kind::File))
    }
}

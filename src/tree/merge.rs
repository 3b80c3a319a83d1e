//! Merge of layer indexes into an image index.

use super::rule::{self, Has};
use crate::digest::Digest;
use crate::layer::{Dirent, Index, IndexError, Node, Of, TooMany, WHITEOUT, Writer, index_flags, node_flags};
use crate::meta::Kind;
use crate::name::show;
use std::collections::{HashMap, HashSet, VecDeque};
use zerocopy::FromZeros;

/// Why layers cannot be merged into an image. Layers count from 1, the bottom one.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A layer's index is damaged.
    #[error("layer {layer}: {why}")]
    Index {
        /// The layer.
        layer: usize,
        /// The error.
        why: IndexError,
    },
    /// A hard link whose target no lower layer has.
    #[error("layer {layer}: a hard link names `{}`, which {why}", show(.target))]
    Link {
        /// The layer.
        layer: usize,
        /// The path of the target.
        target: Vec<u8>,
        /// Why the target cannot be used.
        why: &'static str,
    },
    /// The image has no layer, or more than the index can number.
    #[error("the image has {0} layers")]
    Layers(usize),
    /// The image exceeds what an index can hold.
    #[error("the image {0}")]
    TooMany(#[from] TooMany),
}

/// An inode of one layer.
type Key = (u16, u32);

/// Merges an image's layers, the bottom one first, into one index with `chain_id` as its source. An image without
/// layers is an empty root directory.
pub fn merge(chain_id: &Digest, layers: &[Index]) -> Result<Vec<u8>, MergeError> {
    if layers.len() > usize::from(u16::MAX) {
        return Err(MergeError::Layers(layers.len()));
    }
    let mut merge = Merge {
        layers,
        writer: Writer::default(),
        links: HashMap::new(),
        shared: HashSet::new(),
        numbers: HashMap::new(),
    };
    merge.resolve_links()?;
    merge.run()?;
    Ok(merge.writer.seal(Of::Image, chain_id))
}

struct Merge<'a> {
    layers: &'a [Index],
    writer: Writer,
    /// Hard links whose target is in another layer, and that target.
    links: HashMap<Key, Key>,
    /// The targets of such links.
    shared: HashSet<Key>,
    /// The new numbers of inodes that may have several names.
    numbers: HashMap<Key, u32>,
}

/// A directory of the image, and its sources in the layers, the topmost first.
struct Dir {
    number: u32,
    sources: Vec<Key>,
}

/// The directories of several layers that merge into one, the topmost first, and the one with the attributes.
struct Stack {
    sources: Vec<Key>,
    attributes: Option<Key>,
}

/// The merged entry of a name.
enum Seen {
    Dir(Stack),
    Inode(Key),
}

/// A name in one of a directory's sources.
struct Named<'a> {
    name: &'a [u8],
    /// The index of the source: a smaller one is a higher layer.
    rank: usize,
    layer: u16,
    entry: &'a Dirent,
}

impl<'a> Merge<'a> {
    fn run(&mut self) -> Result<(), MergeError> {
        let roots: Vec<Key> = (0..self.layers.len()).rev().map(|layer| (layer as u16, 0)).collect();
        let root = self.dir(self.stack(&roots)?, 0)?;
        let mut queue = VecDeque::from([root]);
        while let Some(dir) = queue.pop_front() {
            self.fill(&dir, &mut queue)?;
        }
        Ok(())
    }

    /// Writes a directory's entries, and queues its subdirectories.
    fn fill(&mut self, dir: &Dir, queue: &mut VecDeque<Dir>) -> Result<(), MergeError> {
        let names = self.names(&dir.sources)?;
        let start = self.writer.next_dirent()?;
        let mut links = 2;
        for group in names.chunk_by(|a, b| a.name == b.name) {
            let found: Vec<Key> = group.iter().map(|n| (n.layer, n.entry.node.get())).collect();
            let number = match self.seen(&found)? {
                None => continue,
                Some(Seen::Dir(stack)) => {
                    links += 1;
                    let child = self.dir(stack, dir.number)?;
                    let number = child.number;
                    queue.push_back(child);
                    number
                }
                Some(Seen::Inode(key)) => {
                    let number = self.inode(key)?;
                    let node = self.writer.node_mut(number);
                    node.nlink = (node.nlink.get() + 1).into();
                    number
                }
            };
            let mode = self.writer.node_mut(number).mode.get();
            self.writer.dirent(group[0].name, number, mode)?;
        }
        let count = self.writer.next_dirent()? - start;
        let node = self.writer.node_mut(dir.number);
        (node.data, node.count, node.nlink) = (u64::from(start).into(), count.into(), links.into());
        Ok(())
    }

    /// Returns all names of a directory's sources, sorted; of equal names, the higher layer's first.
    fn names(&self, sources: &[Key]) -> Result<Vec<Named<'a>>, MergeError> {
        let mut all = Vec::new();
        for (rank, key) in sources.iter().enumerate() {
            let index = self.index(key.0);
            let entries = index.children(self.node(*key)?).map_err(damaged(key.0))?;
            all.reserve(entries.len());
            for entry in entries {
                let name = index.name(entry).map_err(damaged(key.0))?;
                // In a damaged index a directory might be its own descendant, and the merge would never end.
                if !entry.is_whiteout()
                    && let child = self.node((key.0, entry.node.get()))?
                    && child.is_dir()
                    && (child.parent.get() != key.1 || entry.node.get() <= key.1)
                {
                    return Err(damaged(key.0)(IndexError::Damaged("a directory has the wrong parent")));
                }
                all.push(Named { name, rank, layer: key.0, entry });
            }
        }
        if sources.len() > 1 {
            all.sort_unstable_by(|a, b| (a.name, a.rank).cmp(&(b.name, b.rank)));
        }
        Ok(all)
    }

    /// Writes a directory without its entries.
    fn dir(&mut self, stack: Stack, parent: u32) -> Result<Dir, MergeError> {
        let mut node = match stack.attributes {
            Some(key) => self.copy(key)?,
            None => Node { mode: (Kind::Dir.bits() | 0o755).into(), ..Node::new_zeroed() },
        };
        node.flags = 0.into();
        node.parent = parent.into();
        let number = self.writer.node(node)?;
        Ok(Dir { number, sources: stack.sources })
    }

    /// Merges the entries that the layers have under one name, the topmost first.
    fn seen(&self, found: &[Key]) -> Result<Option<Seen>, MergeError> {
        Ok(match rule::seen(found.iter().map(|key| self.has(*key)))? {
            rule::Seen::Nothing => None,
            rule::Seen::Other(at) => Some(Seen::Inode(found[at])),
            rule::Seen::Dir => Some(Seen::Dir(self.stack(found)?)),
        })
    }

    fn has(&self, key: Key) -> Result<Has, MergeError> {
        if key.1 == WHITEOUT {
            return Ok(Has::Whiteout);
        }
        let node = self.node(key)?;
        Ok(if node.is_dir() { Has::Dir { bare: node.has(node_flags::BARE) } } else { Has::Other })
    }

    /// Collects directories from the top down to the first that is opaque or the first entry that is not a directory.
    /// The attributes are those of the topmost one with an entry; an implicit directory takes a lower one's even if it
    /// hides the lower one's entries.
    fn stack(&self, found: &[Key]) -> Result<Stack, MergeError> {
        let mut stack = Stack { sources: Vec::new(), attributes: None };
        let mut opaque = false;
        for key in found {
            let Some(node) = (key.1 != WHITEOUT).then(|| self.node(*key)).transpose()?.filter(|node| node.is_dir())
            else {
                break;
            };
            if stack.attributes.is_none() && !node.has(node_flags::IMPLICIT) {
                stack.attributes = Some(*key);
            }
            if !opaque {
                stack.sources.push(*key);
            }
            opaque |= node.has(node_flags::OPAQUE);
        }
        Ok(stack)
    }

    /// Returns the number of an inode that is not a directory, and writes it at its first name.
    fn inode(&mut self, key: Key) -> Result<u32, MergeError> {
        let key = self.links.get(&key).copied().unwrap_or(key);
        let several = self.node(key)?.nlink.get() > 1 || self.shared.contains(&key);
        if several && let Some(number) = self.numbers.get(&key) {
            return Ok(*number);
        }
        let node = self.copy(key)?;
        let number = self.writer.node(node)?;
        if several {
            self.numbers.insert(key, number);
        }
        Ok(number)
    }

    /// Copies an inode and what it refers to into the new index; its links are counted anew.
    fn copy(&mut self, key: Key) -> Result<Node, MergeError> {
        let index = self.index(key.0);
        let mut node = self.node(key)?.clone();
        let set = index.xattrs(&node).and_then(|set| set.collect::<Result<Vec<_>, _>>()).map_err(damaged(key.0))?;
        node.xattrs = self.writer.xattrs(&set)?.into();
        if node.kind() == Some(Kind::Symlink) {
            node.data = u64::from(self.writer.string(index.target(&node).map_err(damaged(key.0))?)?).into();
        }
        if node.has(node_flags::SPARSE) {
            node.data = u64::from(self.writer.extents(index.extents(&node).map_err(damaged(key.0))?)?).into();
        }
        node.layer = key.0.into();
        node.nlink = 0.into();
        Ok(node)
    }

    /// Finds the targets of one layer's hard links in the layers below it. The path is resolved without the link's own
    /// layer: a link may outlive the name it was made from.
    fn resolve_links(&mut self) -> Result<(), MergeError> {
        for layer in 0..self.layers.len() as u16 {
            let index = self.index(layer);
            if index.flags() & index_flags::FOREIGN_LINKS == 0 {
                continue;
            }
            for (id, node) in index.nodes().iter().enumerate().filter(|(_, node)| node.kind().is_none()) {
                let target = index.target(node).map_err(damaged(layer))?;
                let wrong = |why| MergeError::Link { layer: usize::from(layer) + 1, target: target.to_vec(), why };
                let key = match self.find_below(layer, target)? {
                    Some(Seen::Inode(key)) => key,
                    Some(Seen::Dir(_)) => return Err(wrong("is a directory")),
                    None => return Err(wrong("no layer below has")),
                };
                let key = self.links.get(&key).copied().unwrap_or(key);
                self.links.insert((layer, id as u32), key);
                self.shared.insert(key);
            }
        }
        Ok(())
    }

    /// Returns what the layers below `layer` have at a path, by its exact components.
    fn find_below(&self, layer: u16, path: &[u8]) -> Result<Option<Seen>, MergeError> {
        let roots: Vec<Key> = (0..layer).rev().map(|below| (below, 0)).collect();
        let mut seen = Some(Seen::Dir(self.stack(&roots)?));
        for part in path.split(|b| *b == b'/') {
            let Some(Seen::Dir(stack)) = seen else { return Ok(None) };
            let mut found = Vec::new();
            for key in stack.sources {
                if let Some(entry) = self.index(key.0).find(self.node(key)?, part).map_err(damaged(key.0))? {
                    found.push((key.0, entry.node.get()));
                }
            }
            seen = self.seen(&found)?;
        }
        Ok(seen)
    }

    fn index(&self, layer: u16) -> &'a Index {
        &self.layers[usize::from(layer)]
    }

    fn node(&self, key: Key) -> Result<&'a Node, MergeError> {
        self.index(key.0).node(key.1).map_err(damaged(key.0))
    }
}

fn damaged(layer: u16) -> impl Fn(IndexError) -> MergeError {
    move |why| MergeError::Index { layer: usize::from(layer) + 1, why }
}

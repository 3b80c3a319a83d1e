//! The layers of an image as a stack: the tree as of each layer, and what the layer changes in the tree below it.
//!
//! The merged index of the whole image is the store's; the trees as of lower layers are merged when they are first
//! needed. Nothing is kept for an entry but the sizes of directories.

use super::waste::{Names, Waste};
use crate::fs::{Data, Fs};
use crate::image::{self, Error, Result};
use crate::layer::{Dirent, Index, IndexError, Node};
use crate::meta::Kind;
use crate::store::{Image, Intent, Session, Store};
use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::File;

/// No inode.
const NONE: u32 = u32::MAX;

/// An image's layers, and the trees that they merge into.
pub struct Stack {
    store: Store,
    title: String,
    layers: Vec<Index>,
    tars: Vec<File>,
    whole: Tree,
    /// The trees as of all layers but the topmost.
    lower: Vec<OnceCell<Tree>>,
    /// The sizes of the directories of each layer's own index.
    own_sizes: Vec<OnceCell<DirSizes>>,
    waste: OnceCell<Waste>,
}

/// A merged tree and the data of its files.
pub struct Tree {
    fs: Fs,
    sizes: OnceCell<DirSizes>,
}

/// The sizes of the directories of an index: the sums of the sizes of all regular files below them. A file with several
/// names counts once, where the first one is.
pub struct DirSizes {
    /// The inode numbers of the directories, ascending.
    dirs: Vec<u32>,
    sums: Vec<u64>,
}

/// What is shown of an image. Layers are numbered from 0, the bottom one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// The tree of the whole image, without marks.
    Whole,
    /// The tree as of a layer, with marks for what the layer changes.
    AsOf(usize),
    /// Only what a layer changes.
    Changes(usize),
}

/// How a layer changes an entry of the tree below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// It does not.
    Same,
    /// The tree below has no such name.
    Added,
    /// The layer has the name too. Of a directory: the layer has the directory, or something below it.
    Changed,
    /// Only the tree below has the name.
    Removed,
}

/// The tree that an entry is listed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The tree as of the layer, or of the whole image.
    Here,
    /// The tree below the layer.
    Below,
}

/// An entry of a listing. Valid only with the stack and the view it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// The tree that has the entry.
    pub side: Side,
    /// How the layer changes it.
    pub mark: Mark,
    /// The directory that has the entry, in that tree.
    dir: u32,
    /// The position in the directory.
    position: u32,
    /// The inode of the same path in the tree below.
    below: u32,
    /// The inode of the same path in the layer.
    own: u32,
}

impl Stack {
    /// Opens an image that is in the store. Merges nothing if its merged index is cached. Its files stay readable when
    /// the image is removed afterwards.
    pub fn open(store: &Store, image: &Image) -> Result<Stack> {
        let session = Session::begin(store)?;
        let layers = image.layers.iter().map(|l| l.diff_id.clone()).collect();
        session.intend(&Intent { layers, trees: [image.chain_id()].into(), ..Intent::default() })?;
        let opened = image::open_tree(store, image)?;
        let layers = image::open_layers(store, image)?;
        let whole = Tree::new(opened.tree, &opened.tars)?;
        Ok(Stack {
            store: store.clone(),
            title: image.title(),
            lower: (1..layers.len()).map(|_| OnceCell::new()).collect(),
            own_sizes: layers.iter().map(|_| OnceCell::new()).collect(),
            layers,
            tars: opened.tars,
            whole,
            waste: OnceCell::new(),
        })
    }

    /// Returns the layers' indexes, the bottom one first.
    pub fn layers(&self) -> &[Index] {
        &self.layers
    }

    /// Returns the tree of the whole image.
    pub fn whole(&self) -> &Tree {
        &self.whole
    }

    /// Returns the tree as of a layer; merges it if that is needed and has not been done.
    pub fn tree(&self, layer: usize) -> Result<&Tree> {
        let Some(cell) = self.lower.get(layer) else { return Ok(&self.whole) };
        if let Some(tree) = cell.get() {
            return Ok(tree);
        }
        let index = image::merge_layers(&self.store, &self.layers[..=layer], &self.title)?;
        let tree = Tree::new(index, &self.tars[..=layer])?;
        Ok(cell.get_or_init(|| tree))
    }

    /// Returns the wasted space; computes it at the first call.
    pub fn waste(&self) -> Result<&Waste> {
        if let Some(waste) = self.waste.get() {
            return Ok(waste);
        }
        let waste = Waste::of(&self.layers, self.whole.index()?).map_err(|why| self.damaged(why))?;
        Ok(self.waste.get_or_init(|| waste))
    }

    /// Returns the tree that has an entry.
    pub fn tree_of(&self, view: View, item: &Item) -> Result<&Tree> {
        match (view, item.side) {
            (View::Whole, _) => Ok(&self.whole),
            (View::AsOf(layer) | View::Changes(layer), Side::Here) => self.tree(layer),
            (View::AsOf(layer) | View::Changes(layer), Side::Below) => self.tree(layer.saturating_sub(1)),
        }
    }

    /// Lists a directory, or the root: sorted by name. Anything else has no entries.
    pub fn children(&self, view: View, dir: Option<&Item>) -> Result<Vec<Item>> {
        let listing = Listing::new(self, view)?;
        listing.of(dir).map_err(|why| self.damaged(why))
    }

    /// Returns an entry's name.
    pub fn name(&self, view: View, item: &Item) -> Result<&[u8]> {
        let index = self.tree_of(view, item)?.index()?;
        let entry = item.entry(index).map_err(|why| self.damaged(why))?;
        index.name(entry).map_err(|why| self.damaged(why))
    }

    /// Returns the inode number and the inode of an entry, in the index of its tree.
    pub fn node(&self, view: View, item: &Item) -> Result<(u32, &Node)> {
        let index = self.tree_of(view, item)?.index()?;
        let id = item.entry(index).map_err(|why| self.damaged(why))?.node.get();
        Ok((id, index.node(id).map_err(|why| self.damaged(why))?))
    }

    /// Returns the size of a file, or the sum of the sizes of the files below a directory: of those that the layer has
    /// itself if only its changes are shown.
    pub fn size(&self, view: View, item: &Item) -> Result<u64> {
        let (id, node) = self.node(view, item)?;
        if !node.is_dir() {
            return Ok(if node.kind() == Some(Kind::File) { node.size.get() } else { 0 });
        }
        match view {
            View::Changes(layer) if item.own != NONE => {
                let sizes = &self.own_sizes[layer];
                let own = &self.layers[layer];
                Ok(sizes.get_or_init(|| DirSizes::of(own)).get(item.own))
            }
            _ => Ok(self.tree_of(view, item)?.size(id)?),
        }
    }

    fn damaged(&self, why: IndexError) -> Error {
        Error::Broken { image: self.title.clone(), what: why.to_string() }
    }
}

impl Tree {
    fn new(index: Index, tars: &[File]) -> Result<Tree> {
        let data = tars.iter().map(|tar| tar.try_clone().and_then(Data::open)).collect::<std::io::Result<Vec<Data>>>();
        let data = data.map_err(|e| Error::Usage(format!("cannot map the image's layers: {e}")))?;
        Ok(Tree { fs: Fs::new(index, data), sizes: OnceCell::new() })
    }

    /// Returns the tree as a file system.
    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// Returns the merged index.
    pub fn index(&self) -> Result<&Index> {
        self.fs.index().ok_or_else(|| Error::Usage("the image has no merged index".into()))
    }

    /// Returns the size of a directory, by its inode number in the index.
    pub fn size(&self, dir: u32) -> Result<u64> {
        let index = self.index()?;
        Ok(self.sizes.get_or_init(|| DirSizes::of(index)).get(dir))
    }
}

impl DirSizes {
    /// Sums the files of an index. What a damaged index refers to in vain counts as nothing.
    pub fn of(index: &Index) -> DirSizes {
        let mut sizes = DirSizes { dirs: Vec::new(), sums: Vec::new() };
        let mut counted = HashSet::new();
        for (id, node) in (0..).zip(index.nodes()) {
            if !node.is_dir() {
                continue;
            }
            let entries = index.children(node).unwrap_or_default().iter().filter(|entry| !entry.is_whiteout());
            let files = entries.filter(|entry| entry.kind() == Some(Kind::File));
            let size = |entry: &Dirent| {
                let file = index.node(entry.node.get()).ok()?;
                (file.nlink.get() < 2 || counted.insert(entry.node.get())).then(|| file.size.get())
            };
            sizes.dirs.push(id);
            sizes.sums.push(files.filter_map(size).fold(0, u64::saturating_add));
        }
        // A directory's number is greater than its parent's: each sum is complete when it is added to the next.
        for at in (1..sizes.dirs.len()).rev() {
            let parent = index.node(sizes.dirs[at]).map_or(0, |node| node.parent.get());
            if let Ok(parent) = sizes.dirs[..at].binary_search(&parent) {
                sizes.sums[parent] = sizes.sums[parent].saturating_add(sizes.sums[at]);
            }
        }
        sizes
    }

    /// Returns the size of a directory; 0 for anything else.
    pub fn get(&self, dir: u32) -> u64 {
        self.dirs.binary_search(&dir).map_or(0, |at| self.sums[at])
    }
}

impl Item {
    fn entry<'a>(&self, index: &'a Index) -> std::result::Result<&'a Dirent, IndexError> {
        let entries = index.children(index.node(self.dir)?)?;
        entries.get(self.position as usize).ok_or(IndexError::Damaged("an entry does not exist"))
    }
}

/// The indexes that a view's listings are made of.
struct Listing<'a> {
    here: &'a Index,
    below: Option<&'a Index>,
    own: Option<&'a Index>,
    only_changes: bool,
}

impl<'a> Listing<'a> {
    fn new(stack: &'a Stack, view: View) -> Result<Listing<'a>> {
        let (View::AsOf(layer) | View::Changes(layer)) = view else {
            return Ok(Listing { here: stack.whole.index()?, below: None, own: None, only_changes: false });
        };
        Ok(Listing {
            here: stack.tree(layer)?.index()?,
            below: if layer == 0 { None } else { Some(stack.tree(layer - 1)?.index()?) },
            own: stack.layers.get(layer),
            only_changes: matches!(view, View::Changes(_)),
        })
    }

    fn of(&self, item: Option<&Item>) -> std::result::Result<Vec<Item>, IndexError> {
        let (here, below_dir, own) = match item {
            None => (0, 0, 0),
            Some(item) => {
                let index = if item.side == Side::Here { Some(self.here) } else { self.below };
                let id = index.map_or(Ok(NONE), |index| Ok(item.entry(index)?.node.get()))?;
                if item.side == Side::Here { (id, item.below, item.own) } else { (NONE, id, NONE) }
            }
        };
        let listed = entries(Some(self.here), here)?;
        let (below_index, own_index) = (self.below.unwrap_or(self.here), self.own.unwrap_or(self.here));
        let before = entries(self.below, below_dir)?;
        let mut before_names = Names { index: below_index, left: before };
        let mut own_names = Names { index: own_index, left: entries(self.own, own)? };
        let number = |entry: Option<&Dirent>| entry.map_or(NONE, |entry| entry.node.get());
        let mut items = Vec::with_capacity(listed.len());
        for (position, entry) in (0..).zip(listed) {
            let name = self.here.name(entry)?;
            let below = number(before_names.find(name)?);
            let own = number(own_names.find(name)?.filter(|entry| !entry.is_whiteout()));
            let mark = match self.own {
                Some(_) if below == NONE => Mark::Added,
                Some(_) if own != NONE => Mark::Changed,
                _ => Mark::Same,
            };
            if !self.only_changes || mark != Mark::Same {
                items.push(Item { side: Side::Here, mark, dir: here, position, below, own });
            }
        }
        let kept = items.len();
        let mut left = Names { index: self.here, left: listed };
        for (position, entry) in (0..).zip(before) {
            if left.find(below_index.name(entry)?)?.is_none() {
                let (side, mark) = (Side::Below, Mark::Removed);
                items.push(Item { side, mark, dir: below_dir, position, below: entry.node.get(), own: NONE });
            }
        }
        if items.len() > kept {
            let name = |item: &Item| {
                let index = if item.side == Side::Here { self.here } else { below_index };
                item.entry(index).and_then(|entry| index.name(entry)).unwrap_or_default()
            };
            items.sort_by(|a, b| name(a).cmp(name(b)));
        }
        Ok(items)
    }
}

/// Returns the entries of a directory of an index; none if it is no directory.
fn entries(index: Option<&Index>, dir: u32) -> std::result::Result<&[Dirent], IndexError> {
    match index {
        Some(index) if dir != NONE => index.children(index.node(dir)?),
        _ => Ok(&[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::{Limits, Meta, Packed, Packer, index_tar};
    use crate::sys::Bytes;

    #[test]
    fn the_size_of_a_directory_is_the_sum_of_its_files() {
        let mut packer = Packer::new(Vec::new());
        for (path, size) in [("a/x", 3), ("a/b/y", 5), ("c", 7)] {
            packer.entry(path.as_bytes(), &Meta::default(), Packed::File(size)).unwrap();
            packer.data(&vec![0; size as usize]).unwrap();
        }
        packer.entry(b"a/b/z", &Meta::default(), Packed::Link(b"a/x")).unwrap();
        packer.entry(b"a/link", &Meta::default(), Packed::Symlink(b"x")).unwrap();
        let tar = packer.finish().unwrap();
        let draft = index_tar(&mut &tar[..], &Limits::default()).unwrap();
        let index = Index::open(Bytes::Owned(draft.seal(&Digest::of(&tar)))).unwrap();
        let sizes = DirSizes::of(&index);
        let id = |dir: u32, name: &[u8]| index.find(&index.nodes()[dir as usize], name).unwrap().unwrap().node.get();
        let a = id(0, b"a");
        // The file with two names counts once, and a link has no size.
        assert_eq!([0, a, id(a, b"b"), id(0, b"c")].map(|dir| sizes.get(dir)), [15, 8, 5, 0]);
    }
}

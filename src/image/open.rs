//! What a mount needs of an image: the merged tree and the layers' tars. Indexes and trees are made again where they are
//! missing, damaged or of another version of the format, as both follow from the tars.

use super::{Error, Result};
use crate::backing;
use crate::digest::Digest;
use crate::fs::{Data, Fs};
use crate::layer::{self, Index};
use crate::store::{self, Image, Session, Store, chain_ids};
use crate::upper::{self, Below, Upper, User};
use crate::{sys, tree};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;

const READ_BUFFER: usize = 256 << 10;

/// A mountable image.
pub struct OpenTree {
    /// All layers merged.
    pub tree: Index,
    /// The layers' tars, bottom first, as the tree numbers them.
    pub tars: Vec<File>,
}

impl OpenTree {
    /// The file system of the image, with an upper directory on it if one is given.
    pub fn into_fs(self, upper: Option<Upper>) -> Result<Fs> {
        let mapped = self.tars.into_iter().map(Data::open).collect::<io::Result<Vec<Data>>>();
        let layers =
            mapped.map_err(|e| Error::Usage(format!("cannot map the image's layers: {}", sys::describe(&e))))?;
        match upper {
            Some(upper) => Fs::writable(self.tree, layers, upper)
                .map_err(|e| Error::Usage(format!("cannot put the upper directory on the image: {e}"))),
            None => Ok(Fs::new(self.tree, layers)),
        }
    }
}

/// Opens an upper directory and its work directory for a mount of the image with that tree, for this process's user.
pub fn open_upper(upper: PathBuf, work: PathBuf, tree: &Index, volatile: bool) -> Result<Upper> {
    let descriptors = upper::most_descriptors()
        .map_err(|e| Error::Usage(format!("cannot raise the limit of open files: {}", sys::describe(&e))))?;
    let settings = upper::Settings {
        upper,
        work,
        below: Below::Image(tree.source().clone()),
        volatile,
        user: User::own(),
        descriptors,
    };
    Ok(Upper::open(&settings, Box::new(backing::Disk))?)
}

/// Opens an image for mounting. A tree that was made before is mapped and not read.
pub fn open_tree(store: &Store, image: &Image) -> Result<OpenTree> {
    let mut tars = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let path = store.layer_tar(&layer.diff_id);
        let tar = match File::open(&path) {
            Ok(tar) => tar,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let what = format!("layer {}: {} is missing", layer.diff_id.short(), path.display());
                return Err(Error::Broken { image: image.title(), what });
            }
            Err(e) => return Err(store::Error::io("open", path)(e).into()),
        };
        let size = tar.metadata().map_err(store::Error::io("read", &path))?.len();
        if size != layer.size {
            let what = format!("layer {} has {size} bytes, wanted {}", layer.diff_id.short(), layer.size);
            return Err(Error::Broken { image: image.title(), what });
        }
        tars.push(tar);
    }
    let chain = image.chain_id();
    let tree = match map_tree(store, &chain) {
        Some(tree) => tree,
        None => {
            let session = Session::begin(store)?;
            let diff_ids: Vec<&Digest> = image.layers.iter().map(|l| &l.diff_id).collect();
            make_tree(&session, &diff_ids, &image.title())?;
            map_tree(store, &chain).ok_or_else(|| Error::Broken {
                image: image.title(),
                what: "its merged tree cannot be read back".into(),
            })?
        }
    };
    Ok(OpenTree { tree, tars })
}

/// The cached tree of that ChainID, if it is there and of this version.
pub(super) fn map_tree(store: &Store, chain: &Digest) -> Option<Index> {
    let file = File::open(store.tree_path(chain, layer::FORMAT)).ok()?;
    Index::open(sys::map(&file).ok()?).ok().filter(|tree| tree.source() == chain)
}

/// Merges the layers of those DiffIDs, bottom first, and publishes the tree. `origin` names the image in messages.
pub(super) fn make_tree(session: &Session, diff_ids: &[&Digest], origin: &str) -> Result<Digest> {
    let chain = chain_ids(diff_ids.iter().copied()).pop().unwrap_or_else(|| Digest::of(b""));
    let indexes = diff_ids.iter().map(|id| open_index(session, id)).collect::<Result<Vec<Index>>>()?;
    let bytes = tree::merge(&chain, &indexes)
        .map_err(|problem| Error::Merge { origin: origin.to_owned(), problem: Box::new(problem) })?;
    session.publish_file(&session.store().tree_path(&chain, layer::FORMAT), &bytes)?;
    Ok(chain)
}

/// The layer's index if it is there and of this version.
pub(super) fn map_index(store: &Store, diff_id: &Digest) -> Option<Index> {
    let file = File::open(store.layer_index(diff_id)).ok()?;
    Index::open(sys::map(&file).ok()?).ok().filter(|index| index.source() == diff_id)
}

/// The layer's index, made again from its tar where needed.
pub(super) fn open_index(session: &Session, diff_id: &Digest) -> Result<Index> {
    let store = session.store();
    if let Some(index) = map_index(store, diff_id) {
        return Ok(index);
    }
    make_index(session, diff_id)?;
    map_index(store, diff_id)
        .ok_or_else(|| Error::Broken { image: diff_id.to_string(), what: "its index cannot be read back".into() })
}

/// Makes a layer's index from its tar and publishes it.
pub(super) fn make_index(session: &Session, diff_id: &Digest) -> Result<()> {
    let store = session.store();
    let path = store.layer_tar(diff_id);
    let broken = |why: String| Error::Broken { image: format!("with layer {}", diff_id.short()), what: why };
    let file = File::open(&path).map_err(|e| broken(format!("{}: {e}", path.display())))?;
    let mut tar = BufReader::with_capacity(READ_BUFFER, file);
    let draft = layer::index_tar(&mut tar, &layer::Limits::default())
        .map_err(|e| broken(format!("{}: {e}", path.display())))?;
    Ok(session.publish_file(&store.layer_index(diff_id), &draft.seal(diff_id))?)
}

//! Opening an image for a mount: its merged tree and its layers' tars. Indexes and trees that are missing, damaged or
//! of another version of the format are rebuilt from the tars.

use super::{Error, FORMATS, Result, erofs};
use crate::backing;
use crate::digest::{Digest, Verifier};
use crate::erofs::OVERLAY_MARKS;
use crate::fs::{Data, Fs};
use crate::handover::Handover;
use crate::layer::{self, Index, IndexError};
use crate::store::{self, Image, Session, Store, chain_ids};
use crate::upper::{self, Below, Upper, User};
use crate::{sys, tree};
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const READ_BUFFER: usize = 256 << 10;

/// An image opened for mounting.
pub struct OpenTree {
    /// Merged index of all layers.
    pub tree: Index,
    /// The layers' tars, bottom first, in the order of the tree's layer numbers.
    pub tars: Vec<File>,
}

impl OpenTree {
    /// Makes the image's file system, as a union with an upper directory if one is given. `handover` as in
    /// [`Fs::writable`].
    pub fn into_fs(self, upper: Option<Upper>, handover: Option<Arc<Handover>>) -> Result<Fs> {
        let mapped = self.tars.into_iter().map(Data::open).collect::<io::Result<Vec<Data>>>();
        let layers =
            mapped.map_err(|e| Error::Usage(format!("cannot map the image's layers: {}", sys::describe(&e))))?;
        match upper {
            Some(upper) => Fs::writable(self.tree, layers, upper, handover)
                .map_err(|e| Error::Usage(format!("cannot use the upper directory with the image: {e}"))),
            None => Ok(Fs::new(self.tree, layers)),
        }
    }
}

/// Opens an upper directory and its work directory for a mount of the image with that tree, by this process's user.
/// `locks` are descriptors that may have its locks already ([`Upper::open_locked`]).
pub fn open_upper(upper: PathBuf, work: PathBuf, tree: &Index, volatile: bool, locks: &[OwnedFd]) -> Result<Upper> {
    open_upper_with((upper, work), tree, volatile, false, locks)
}

/// [`open_upper`] for kernel overlayfs in a user namespace, which needs native owners.
pub fn open_native_upper(upper: PathBuf, work: PathBuf, tree: &Index) -> Result<Upper> {
    open_upper_with((upper, work), tree, false, true, &[])
}

fn open_upper_with(
    (upper, work): (PathBuf, PathBuf),
    tree: &Index,
    volatile: bool,
    native_owners: bool,
    locks: &[OwnedFd],
) -> Result<Upper> {
    let descriptors = upper::most_descriptors()
        .map_err(|e| Error::Usage(format!("cannot raise the limit of open files: {}", sys::describe(&e))))?;
    let settings = upper::Settings {
        upper,
        work,
        below: Below::Image(tree.source().clone()),
        volatile,
        user: User::own(),
        native_owners,
        descriptors,
    };
    Ok(Upper::open_locked(&settings, Box::new(backing::Disk), locks)?)
}

/// Opens an image for mounting. A cached tree is mapped and its checksum verified.
pub fn open_tree(store: &Store, image: &Image) -> Result<OpenTree> {
    let tars = open_tars(store, image)?;
    let chain = image.chain_id();
    let tree = match map_tree(store, &chain) {
        Some(tree) => tree,
        None => {
            let session = Session::begin(store)?;
            let diff_ids: Vec<&Digest> = image.layers.iter().map(|l| &l.diff_id).collect();
            make_tree(&session, &diff_ids, &image.title())?;
            map_tree(store, &chain).ok_or_else(|| Error::Broken {
                image: image.title(),
                what: "its merged index cannot be read back".into(),
            })?
        }
    };
    Ok(OpenTree { tree, tars })
}

/// Opens the indexes of an image's layers, bottom first. One that is missing or damaged is made again.
pub fn open_layers(store: &Store, image: &Image) -> Result<Vec<Index>> {
    let open = |diff_id: &Digest| match usable(&store.layer_index(diff_id), diff_id) {
        Some(index) => Ok(index),
        None => open_index(&Session::begin(store)?, diff_id),
    };
    image.layers.iter().map(|layer| open(&layer.diff_id)).collect()
}

/// Opens the tars of an image's layers, bottom first. Only their length is checked, as hashing them would take too
/// long.
pub(super) fn open_tars(store: &Store, image: &Image) -> Result<Vec<File>> {
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
    Ok(tars)
}

/// Opens a layer in a folder, which is in no store, as a file system.
pub fn open_single(store: &Store, dir: &Path, diff_id: &Digest, origin: &str) -> Result<Fs> {
    let broken = |what: String| Error::Broken { image: origin.to_owned(), what };
    let index = usable(&dir.join("index"), diff_id).ok_or_else(|| broken("its index cannot be read back".into()))?;
    let tree = merge_layers(store, &[index], origin)?;
    let tar = File::open(dir.join("layer.tar")).and_then(Data::open);
    let tar = tar.map_err(store::Error::io("open", dir))?;
    Ok(Fs::new(tree, vec![tar]))
}

/// Merges the bottom layers of an image, whose indexes are `layers`. The result is mapped from a file without a name on
/// the store's file system, so that it takes no private memory and is gone with its mapping.
pub fn merge_layers(store: &Store, layers: &[Index], origin: &str) -> Result<Index> {
    let chain = chain_ids(layers.iter().map(Index::source)).pop().unwrap_or_else(|| Digest::of(b""));
    let bytes = tree::merge(&chain, layers)
        .map_err(|problem| Error::Merge { origin: origin.to_owned(), problem: Box::new(problem) })?;
    let mut file = tempfile::tempfile_in(store.root()).map_err(store::Error::io("write to", store.root()))?;
    file.write_all(&bytes).map_err(store::Error::io("write to", store.root()))?;
    drop(bytes);
    // The merge took several times the memory of its result.
    sys::return_free_memory();
    let mapped = sys::map(&file).map_err(store::Error::io("map a file of", store.root()))?;
    Index::open(mapped).map_err(|why| Error::Broken { image: origin.to_owned(), what: why.to_string() })
}

/// An image's EROFS file and its devices.
pub struct ErofsImage {
    /// The EROFS image, whose checksum has been verified.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
    /// The layers' tars, the bottom one first.
    pub tars: Vec<File>,
    /// Whether overlayfs above the image would take something in it for its own mark.
    pub has_overlay_marks: bool,
}

/// Opens an image's EROFS file and its tars. If the file is missing, damaged or of another version of the format, it
/// is made again from the merged tree. [`Error::NoErofs`] if EROFS cannot hold the image.
pub fn open_erofs(store: &Store, image: &Image) -> Result<ErofsImage> {
    let chain = image.chain_id();
    let path = store.erofs_path(&chain, FORMATS.erofs);
    let (file, opened) = match erofs::verified(&path, &chain) {
        Ok(found) => found,
        Err(why) => {
            tracing::info!("{} {why}; remaking it", path.display());
            let diff_ids: Vec<&Digest> = image.layers.iter().map(|layer| &layer.diff_id).collect();
            erofs::make(&Session::begin(store)?, &open_tree(store, image)?.tree, &diff_ids, &image.title())?;
            let broken = |why| Error::Broken { image: image.title(), what: format!("{} {why}", path.display()) };
            erofs::verified(&path, &chain).map_err(broken)?
        }
    };
    let has_overlay_marks = opened.flags & OVERLAY_MARKS != 0;
    Ok(ErofsImage { file, path, tars: open_tars(store, image)?, has_overlay_marks })
}

/// Maps the cached tree of that ChainID, if it exists, is undamaged and has this version of the format.
pub(super) fn map_tree(store: &Store, chain: &Digest) -> Option<Index> {
    usable(&store.tree_path(chain, layer::FORMAT), chain)
}

/// Maps and verifies the file of an index or a tree. `None` if it must be rebuilt; the log says why.
fn usable(path: &Path, source: &Digest) -> Option<Index> {
    match map_index_file(path, source) {
        Ok(index) => Some(index),
        Err(Unusable::Missing) => None,
        Err(Unusable::Outdated(format)) => {
            tracing::info!("{} has format {format}; remade in format {}", path.display(), layer::FORMAT);
            None
        }
        Err(why) => {
            tracing::warn!("{} {why}; remaking it", path.display());
            None
        }
    }
}

/// Why an index or a tree must be rebuilt.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// The file does not exist.
    #[error("is missing")]
    Missing,
    /// An earlier version of plyfs wrote it.
    #[error("is outdated: it has format {0}")]
    Outdated(u32),
    /// The content does not match its checksum or format.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// The file cannot be read, for lack of permission or otherwise; its content is unknown.
    #[error("cannot be read: {0}")]
    Unread(String),
}

/// Maps and verifies an index or a tree. The mapping returned is the one that was verified.
pub(super) fn map_index_file(path: &Path, source: &Digest) -> std::result::Result<Index, Unusable> {
    let unread = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Unusable::Missing,
        _ if sys::is_callers(&e) => Unusable::Unread(sys::describe(&e)),
        _ => Unusable::Damaged(sys::describe(&e)),
    };
    let bytes = File::open(path).and_then(|file| sys::map(&file)).map_err(unread)?;
    match Index::open(bytes) {
        Ok(index) if index.source() == source => Ok(index),
        Ok(index) => Err(Unusable::Damaged(format!("it belongs to {}", index.source()))),
        Err(IndexError::Format(format)) if (1..layer::FORMAT).contains(&format) => Err(Unusable::Outdated(format)),
        Err(why) => Err(Unusable::Damaged(why.to_string())),
    }
}

/// Merges the layers of those DiffIDs, bottom first, and publishes the tree and its EROFS image. `origin` names the
/// image in messages.
pub(super) fn make_tree(session: &Session, diff_ids: &[&Digest], origin: &str) -> Result<()> {
    let chain = chain_ids(diff_ids.iter().copied()).pop().unwrap_or_else(|| Digest::of(b""));
    let indexes = diff_ids.iter().map(|id| open_index(session, id)).collect::<Result<Vec<Index>>>()?;
    let bytes = tree::merge(&chain, &indexes)
        .map_err(|problem| Error::Merge { origin: origin.to_owned(), problem: Box::new(problem) })?;
    session.publish_file(&session.store().tree_path(&chain, layer::FORMAT), &bytes)?;
    let broken = |why: IndexError| Error::Broken { image: origin.to_owned(), what: why.to_string() };
    let tree = Index::open(sys::Bytes::Owned(bytes)).map_err(broken)?;
    match erofs::make(session, &tree, diff_ids, origin) {
        Err(why @ Error::NoErofs { .. }) => tracing::debug!("{why}: only the FUSE engine can mount it"),
        made => made?,
    }
    Ok(())
}

/// Opens a layer's index; rebuilds it from the tar if necessary.
pub(super) fn open_index(session: &Session, diff_id: &Digest) -> Result<Index> {
    let store = session.store();
    let path = store.layer_index(diff_id);
    if let Some(index) = usable(&path, diff_id) {
        return Ok(index);
    }
    make_index(session, diff_id)?;
    usable(&path, diff_id)
        .ok_or_else(|| Error::Broken { image: diff_id.to_string(), what: "its index cannot be read back".into() })
}

/// Makes a layer's index from its tar and publishes it. Verifies the tar's DiffID, because a damaged tar would give
/// another tree.
pub(super) fn make_index(session: &Session, diff_id: &Digest) -> Result<()> {
    let store = session.store();
    let path = store.layer_tar(diff_id);
    let broken = |why: String| Error::Broken {
        image: format!("with layer {}", diff_id.short()),
        what: format!("{}: {why}; remove it with `plyfs system fsck --repair`", path.display()),
    };
    let unread = |e: io::Error| broken(sys::describe(&e));
    let file = File::open(&path).map_err(unread)?;
    let length = file.metadata().map_err(unread)?.len();
    let mut tar = BufReader::with_capacity(READ_BUFFER, Verifier::new(file, diff_id, length));
    let draft = layer::index_tar(&mut tar, &layer::Limits::default()).map_err(|e| broken(e.to_string()))?;
    tar.get_mut().drain().map_err(unread)?;
    Ok(session.publish_file(&store.layer_index(diff_id), &draft.seal(diff_id))?)
}

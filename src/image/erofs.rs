//! EROFS images in the store: made from the merged tree, verified before a mount.

use super::{Error, Result};
use crate::digest::Digest;
use crate::erofs::{self, Layer, Opened, Tar, WriteError};
use crate::layer::Index;
use crate::store::{self, Session, Store};
use crate::sys;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Opens an EROFS file and verifies its checksums. The error is a phrase that follows the path.
pub(super) fn verified(path: &Path, chain: &Digest) -> std::result::Result<(File, Opened), String> {
    let unread = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => "is missing".to_owned(),
        _ => format!("cannot be read: {}", sys::describe(&e)),
    };
    let file = File::open(path).map_err(unread)?;
    let opened = erofs::open(&sys::map(&file).map_err(unread)?).map_err(|why| format!("is unusable: {why}"))?;
    if opened.source == *chain { Ok((file, opened)) } else { Err(format!("belongs to {}", opened.source)) }
}

/// What is wrong with an image's EROFS file; `None` if it is intact or does not exist.
pub(super) fn fault(store: &Store, chain: &Digest) -> Option<String> {
    let path = store.erofs_path(chain, erofs::FORMAT);
    if path.exists() { verified(&path, chain).err() } else { None }
}

/// Writes and publishes the EROFS file of a merged tree whose layers have those DiffIDs, bottom first. `origin` names
/// the image in messages. [`Error::NoErofs`] if EROFS cannot hold it.
pub(super) fn make(session: &Session, tree: &Index, diff_ids: &[&Digest], origin: &str) -> Result<()> {
    let store = session.store();
    let open = |id: &&Digest| {
        let path = store.layer_tar(id);
        let file = File::open(&path).map_err(store::Error::io("open", &path))?;
        let length = file.metadata().map_err(store::Error::io("read", &path))?.len();
        Ok(LayerTar { file, length })
    };
    let tars = diff_ids.iter().map(open).collect::<Result<Vec<LayerTar>>>()?;
    let layers: Vec<Layer<'_>> = diff_ids.iter().zip(&tars).map(|(diff_id, tar)| Layer { diff_id, tar }).collect();
    let bytes = erofs::write(tree, &layers).map_err(|why| match why {
        WriteError::Index(_) | WriteError::Read { .. } => Error::Broken { image: origin.into(), what: why.to_string() },
        why => Error::NoErofs { image: origin.into(), why },
    })?;
    Ok(session.publish_file(&store.erofs_path(tree.source(), erofs::FORMAT), &bytes)?)
}

struct LayerTar {
    file: File,
    length: u64,
}

impl Tar for LayerTar {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_exact(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

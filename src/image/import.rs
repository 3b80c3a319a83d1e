//! Import: makes an image of one layer from the tar of a file system.
//!
//! The tar is read by the same pipeline as a pulled layer, in one pass; its digest is known only at the end, so the
//! session's intent is written then, before anything is published.

use super::manifest::PLAIN_LAYER;
use super::{Error, FORMATS, Platform, Problem, Result, open, pipeline, pull};
use crate::digest::Digest;
use crate::dockerfile::{self, BadChange};
use crate::reference::Reference;
use crate::store::{self, Image, Intent, LayerRecord, Session, chain_ids, gc};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Parameters of an import.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Config (`config` in the image's document).
    pub config: Map<String, Value>,
    /// Platform.
    pub platform: Platform,
    /// Creation time.
    pub created: Timestamp,
    /// Comment in the history.
    pub comment: String,
    /// Name for the image.
    pub name: Option<Reference>,
}

/// Makes a config from Dockerfile instructions alone.
pub fn config_of(changes: &[String]) -> std::result::Result<Map<String, Value>, BadChange> {
    let mut config = Map::new();
    dockerfile::apply(&mut config, changes)?;
    Ok(config)
}

/// Imports a tar, plain or compressed, as an image's only layer; or leaves the store unchanged. `origin` is the tar's
/// name in messages, `warn` is called with warnings about its content.
pub fn import(
    session: &Session,
    tar: Box<dyn Read + Send>,
    origin: &str,
    wanted: &Wanted,
    warn: &dyn Fn(&str),
) -> Result<Image> {
    publish_or_roll_back(session, |made| {
        let taken = take(session, tar, origin, warn)?;
        let document = document(wanted, &taken.diff_id);
        let new = New { layers: vec![], document, created: wanted.created, names: wanted.name.as_slice() };
        put(session, &taken, new, origin, made)
    })
}

/// Runs `make`, and removes what it published if it fails. `make` records everything new in its argument.
pub(super) fn publish_or_roll_back(
    session: &Session,
    make: impl FnOnce(&mut Intent) -> Result<Image>,
) -> Result<Image> {
    let mut made = Intent::default();
    let committed = make(&mut made).and_then(|image| enter(session, image));
    if committed.is_err() && !session.is_abandoned() {
        let back = session.give_up().and_then(|()| gc::take_back(session.store(), &made, FORMATS));
        if let Err(error) = back {
            tracing::warn!(%error, "cannot remove the files of a failed import; `plyfs system gc` will");
        }
    }
    committed
}

/// A layer in a folder, complete but not published.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {
    dir: PathBuf,
    /// DiffID: digest of the tar.
    pub diff_id: Digest,
    /// Size of the tar, in bytes.
    pub size: u64,
    /// Size of the input, in bytes.
    compressed_size: u64,
}

impl Taken {
    /// The layer's record in the catalog.
    pub fn record(&self) -> LayerRecord {
        LayerRecord {
            diff_id: self.diff_id.clone(),
            blob: None,
            media_type: PLAIN_LAYER.into(),
            compressed_size: self.compressed_size,
            size: self.size,
        }
    }
}

/// Reads a tar, plain or compressed, through the pipeline into the session's folder.
pub(super) fn take(session: &Session, tar: Box<dyn Read + Send>, origin: &str, warn: &dyn Fn(&str)) -> Result<Taken> {
    take_into(session.temp_path("layer"), tar, origin, warn)
}

/// Reads a tar, plain or compressed, through the pipeline into a new folder `dir`.
pub fn take_into(dir: PathBuf, tar: Box<dyn Read + Send>, origin: &str, warn: &dyn Fn(&str)) -> Result<Taken> {
    let wrong = |problem| Error::Source { origin: origin.to_owned(), problem: Box::new(problem) };
    fs::create_dir(&dir).map_err(store::Error::io("make", &dir))?;
    let expected = pipeline::Expected { blob: None, diff_id: None };
    let done = pipeline::run(tar, &expected, &dir.join("layer.tar"), &AtomicBool::new(false), &|_| ());
    let done = done.map_err(|problem| match problem {
        Problem::Read { cause, .. } => wrong(Problem::Read { what: "it".into(), cause }),
        problem => wrong(problem),
    })?;
    done.draft.warnings().iter().for_each(|text| warn(text));
    let pipeline::Done { draft, diff_id, size, compressed_size, .. } = done;
    store::write_new(&dir.join("index"), &draft.seal(&diff_id))?;
    Ok(Taken { dir, diff_id, size, compressed_size })
}

/// Publishes a taken layer, unless the store has it. The session's intent has the layer.
pub fn publish_layer(session: &Session, taken: &Taken, made: &mut Intent) -> Result<()> {
    let Taken { dir, diff_id, .. } = taken;
    let recorded = pull::recorded_sizes(&session.store().catalog()?);
    if !pull::has_whole(session, diff_id, recorded.get(diff_id).copied())? && session.publish_layer(dir, diff_id)? {
        made.layers.insert(diff_id.clone());
    }
    Ok(())
}

/// An image whose layers are in the store.
pub struct New<'a> {
    /// The layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// The image's document.
    pub document: Vec<u8>,
    /// Creation time of the image.
    pub created: Timestamp,
    /// Names for the image.
    pub names: &'a [Reference],
}

impl New<'_> {
    /// What the image needs, its layers and documents.
    pub fn intent(&self) -> Intent {
        Intent {
            layers: self.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
            blobs: [Digest::of(&self.document)].into(),
            trees: [self.chain()].into(),
        }
    }

    fn chain(&self) -> Digest {
        chain_ids(self.layers.iter().map(|layer| &layer.diff_id)).pop().unwrap_or_else(|| Digest::of(b""))
    }
}

/// Publishes the tree and the document of an image; `made` collects what is new. The session's intent has all parts.
pub(super) fn compose(session: &Session, new: New<'_>, origin: &str, made: &mut Intent) -> Result<Image> {
    let (id, chain) = (Digest::of(&new.document), new.chain());
    if open::map_tree(session.store(), &chain).is_none() {
        made.trees.insert(chain);
        let diff_ids: Vec<&Digest> = new.layers.iter().map(|layer| &layer.diff_id).collect();
        open::make_tree(session, &diff_ids, origin)?;
    }
    if session.publish_blob(&id, &new.document)? {
        made.blobs.insert(id.clone());
    }
    Ok(Image {
        tags: new.names.to_vec(),
        created: Some(new.created.to_string()),
        pulled: Timestamp::now().to_string(),
        ..Image::new(id, new.layers)
    })
}

/// Adds an image, whose layers are in the store, to the catalog; or leaves the store unchanged. The session's intent has
/// all parts ([`New::intent`]).
pub fn publish(session: &Session, new: New<'_>, origin: &str) -> Result<Image> {
    let id = Digest::of(&new.document);
    let catalog = session.store().catalog()?;
    if let Some(known) = catalog.get(&id)
        && new.names.iter().all(|name| known.tags.contains(name))
        && open::map_tree(session.store(), &known.chain_id()).is_some()
    {
        return Ok(known.clone());
    }
    publish_or_roll_back(session, |made| compose(session, new, origin, made))
}

/// Publishes a taken layer on top of the layers of `new`, and the image; `made` collects what is new.
pub(super) fn put(
    session: &Session,
    taken: &Taken,
    mut new: New<'_>,
    origin: &str,
    made: &mut Intent,
) -> Result<Image> {
    new.layers.push(taken.record());
    session.intend(&new.intent())?;
    publish_layer(session, taken, made)?;
    compose(session, new, origin, made)
}

/// Makes the image's document, with fields in Docker's order.
fn document(wanted: &Wanted, diff_id: &Digest) -> Vec<u8> {
    let created = wanted.created.to_string();
    let mut document = Map::new();
    let mut put = |name: &str, value: Value| drop(document.insert(name.to_owned(), value));
    put("comment", json!(wanted.comment));
    put("created", json!(created));
    put("config", Value::from(wanted.config.clone()));
    put("architecture", json!(wanted.platform.architecture));
    if let Some(variant) = &wanted.platform.variant {
        put("variant", json!(variant));
    }
    put("os", json!(wanted.platform.os));
    put("rootfs", json!({ "type": "layers", "diff_ids": [diff_id] }));
    put("history", json!([{ "created": created, "comment": wanted.comment }]));
    Value::from(document).to_string().into_bytes()
}

/// Adds the image to the catalog. A known image keeps its manifests and indexes.
fn enter(session: &Session, mut image: Image) -> Result<Image> {
    session.store().update_by(session, |_, catalog| {
        if let Some(known) = catalog.get(&image.id) {
            image.manifest.clone_from(&known.manifest);
            image.indexes.clone_from(&known.indexes);
            image.layers.clone_from(&known.layers);
        }
        let id = image.id.clone();
        catalog.insert(image);
        catalog.get(&id).cloned().ok_or_else(|| store::Error::NoSuchImage(id.to_string()).into())
    })
}

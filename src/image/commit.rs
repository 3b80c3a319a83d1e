//! Commit: makes a new image from an image and the changes in an upper directory, as one more layer.
//!
//! The layer is written and read at the same time, through the same pipeline as an imported tar: it is hashed and
//! indexed while it is written, once, into the store.

use super::import::{New, Taken, publish_or_roll_back, put, take, take_into};
use super::manifest::{DOCUMENT_CAP, LAYERS_CAP};
use super::{Error, Result, open};
use crate::digest::Digest;
use crate::dockerfile;
use crate::fs::{Data, ExportError, Fs, NewLayer};
use crate::reference::Reference;
use crate::store::{Image, Intent, Session, Store};
use crate::upper::{Upper, User, View};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::{self, BufWriter, Read};
use std::path::Path;
use std::thread;

/// Maximum number of descriptors that a view of an upper directory keeps open: each object is read once or twice.
const DESCRIPTORS: usize = 256;
/// Bytes written at once: the capacity of a pipe.
const PIECE: usize = 64 << 10;

/// Parameters of a commit.
pub struct Wanted<'a> {
    /// The base image.
    pub image: &'a Image,
    /// The upper directory. It may be mounted; data not yet written back by the mount is not seen.
    pub upper: &'a Path,
    /// Config of the new image (`config` in its document); `None`: the base image's.
    pub config: Option<Map<String, Value>>,
    /// Changes to the config, as Dockerfile instructions.
    pub changes: &'a [String],
    /// Author.
    pub author: Option<String>,
    /// Comment in the history.
    pub message: Option<String>,
    /// Creation time.
    pub created: Timestamp,
    /// `created_by` in the history; `None`: the config's command.
    pub created_by: Option<String>,
    /// Upper limit for modification times in the layer.
    pub newest: Option<Timestamp>,
    /// Paths at which an empty object that the image lacks is left out ([`Fs::changes`]).
    pub left_out: &'a BTreeSet<Vec<u8>>,
    /// Name for the new image.
    pub name: Option<Reference>,
}

/// Opens the union of an image and an upper directory for reading, also beside a mount of it.
pub fn open_view(store: &Store, image: &Image, upper: &Path) -> Result<Fs> {
    let opened = {
        // The lock keeps the image until its files are open; open files survive a removal.
        let _beginning = store.lock_shared()?;
        open::open_tree(store, image)?
    };
    let wanted = View { upper: upper.into(), image: image.chain_id(), user: User::own(), descriptors: DESCRIPTORS };
    let upper = Upper::view(&wanted)?;
    let layers = opened.tars.into_iter().map(Data::open).collect::<io::Result<Vec<Data>>>();
    let layers = layers.map_err(|e| Error::Broken { image: image.title(), what: e.to_string() })?;
    Fs::writable(opened.tree, layers, upper, None).map_err(Error::Changes)
}

/// Makes an image of the changes, or leaves the store unchanged. Calls `warn` for what a layer cannot represent.
pub fn commit(session: &Session, wanted: &Wanted<'_>, warn: &dyn Fn(&str)) -> Result<Image> {
    let (store, image) = (session.store(), wanted.image);
    let below = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    session.intend(&Intent { layers: below, trees: [image.chain_id()].into(), ..Intent::default() })?;
    if image.layers.len() >= LAYERS_CAP {
        return Err(Error::Conflict(format!("{} already has {LAYERS_CAP} layers, the maximum", image.title())));
    }
    let document = Document::of(store, wanted)?;
    let fs = open_view(store, image, wanted.upper)?;
    let changes = fs.changes(wanted.left_out).map_err(Error::Changes)?;
    let layer = NewLayer::of(&fs, &changes, wanted.left_out)?;
    let origin = wanted.upper.display().to_string();
    publish_or_roll_back(session, |made| {
        let newest = wanted.newest.map(Timestamp::as_second);
        let (taken, lost) = pipe_layer(&layer, newest, |tar| take(session, tar, &origin, warn))?;
        lost.iter().for_each(|line| warn(line));
        let document = document.with_layer(&taken.diff_id, wanted)?;
        let layers = image.layers.clone();
        let new = New { layers, document, created: wanted.created, names: wanted.name.as_slice() };
        put(session, &taken, new, &origin, made)
    })
}

/// Writes the changes in an upper directory, which is not mounted, as a layer into the new folder `dir`; returns `None`
/// if there are no changes. `left_out` as in [`Wanted`], `newest` in seconds.
pub fn capture(
    store: &Store,
    image: &Image,
    upper: &Path,
    left_out: &BTreeSet<Vec<u8>>,
    newest: Option<i64>,
    dir: &Path,
    warn: &dyn Fn(&str),
) -> Result<Option<Taken>> {
    let fs = open_view(store, image, upper)?;
    let changes = fs.changes(left_out).map_err(Error::Changes)?;
    if changes.is_empty() {
        return Ok(None);
    }
    let layer = NewLayer::of(&fs, &changes, left_out)?;
    let (taken, lost) = pipe_layer(&layer, newest, |tar| take_into(dir.into(), tar, "the step's changes", warn))?;
    lost.iter().for_each(|line| warn(line));
    Ok(Some(taken))
}

/// Writes a layer into a pipe while `take` reads it. Returns the error of the side that failed first.
fn pipe_layer<T>(
    layer: &NewLayer<'_>,
    newest: Option<i64>,
    take: impl FnOnce(Box<dyn Read + Send>) -> Result<T>,
) -> Result<(T, Vec<String>)> {
    let (from, to) = io::pipe().map_err(ExportError::Output)?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let (mut out, lost) = layer.write(BufWriter::with_capacity(PIECE, to), newest)?;
            io::Write::flush(&mut out)?;
            Ok::<_, ExportError>(lost)
        });
        let taken = take(Box::new(from));
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (taken, written) {
            (Ok(taken), Ok(lost)) => Ok((taken, lost)),
            // EPIPE: the reading side failed, and its error counts.
            (Err(error), Err(ExportError::Output(_)) | Ok(_)) => Err(error),
            (_, Err(error)) => Err(error.into()),
        }
    })
}

/// The document of an image, to be changed to that of the new image.
struct Document(Map<String, Value>);

impl Document {
    /// Returns the base image's document with the new config, author and time. Unknown fields are kept.
    fn of(store: &Store, wanted: &Wanted<'_>) -> Result<Document> {
        let bytes = store.blob(&wanted.image.id, DOCUMENT_CAP)?;
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(&bytes) else {
            return Err(broken(wanted.image, "its config is not a JSON object"));
        };
        let own = || fields.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut config = wanted.config.clone().unwrap_or_else(own);
        let created_by = wanted.created_by.clone().unwrap_or_else(|| command_of(&config));
        dockerfile::apply(&mut config, wanted.changes)?;
        fields.insert("config".into(), Value::from(config));
        fields.insert("created".into(), json!(wanted.created.to_string()));
        for (key, value) in [("author", &wanted.author), ("comment", &wanted.message)] {
            match value {
                Some(value) => drop(fields.insert(key.into(), json!(value))),
                // Values for the base image do not hold for the new one.
                None => drop(fields.shift_remove(key)),
            }
        }
        let mut document = Document(fields);
        document.add_history(wanted, &created_by)?;
        Ok(document)
    }

    /// Adds a step to the history. If the history lacks steps of layers, empty ones are inserted, so that the new step
    /// belongs to the new layer.
    fn add_history(&mut self, wanted: &Wanted<'_>, created_by: &str) -> Result<()> {
        let history = self.0.entry("history").or_insert(Value::Null);
        if history.is_null() {
            *history = json!([]);
        }
        let steps = history.as_array_mut().ok_or_else(|| broken(wanted.image, "its history is not an array"))?;
        let made_none = |step: &Value| step.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
        let known = steps.iter().filter(|step| !made_none(step)).count();
        let unknown = wanted.image.layers.len().saturating_sub(known);
        steps.extend(std::iter::repeat_n(json!({}), unknown));
        let mut step = Map::new();
        step.insert("created".into(), json!(wanted.created.to_string()));
        for (key, value) in [
            ("created_by", Some(created_by).filter(|text| !text.is_empty())),
            ("author", wanted.author.as_deref()),
            ("comment", wanted.message.as_deref()),
        ] {
            if let Some(value) = value {
                step.insert(key.into(), json!(value));
            }
        }
        steps.push(Value::from(step));
        Ok(())
    }

    /// Returns the document's bytes, with the new layer on top.
    fn with_layer(mut self, diff_id: &Digest, wanted: &Wanted<'_>) -> Result<Vec<u8>> {
        let root = self.0.get_mut("rootfs").and_then(Value::as_object_mut);
        let list = root.map(|root| root.entry("diff_ids").or_insert(Value::Null));
        match list {
            Some(Value::Array(list)) => list.push(json!(diff_id)),
            Some(list @ Value::Null) => *list = json!([diff_id]),
            _ => return Err(broken(wanted.image, "its config has no rootfs.diff_ids")),
        }
        Ok(Value::from(self.0).to_string().into_bytes())
    }
}

/// Formats a config's command line as Docker's histories do.
fn command_of(config: &Map<String, Value>) -> String {
    let words = config.get("Cmd").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

fn broken(image: &Image, what: &str) -> Error {
    Error::Broken { image: image.title(), what: what.into() }
}

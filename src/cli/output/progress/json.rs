//! JSON progress (`--progress json`): the objects that Docker's daemon sends to clients.

use super::{Layer, Stage};
use crate::cli::output::stdout as output;
use crate::image::pull::Pulled;
use crate::image::push::Pushed;
use crate::reference::Reference;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The shortest interval between two progress objects of a layer.
const INTERVAL: Duration = Duration::from_millis(100);

/// Writes one JSON object per line.
#[derive(Default)]
pub(super) struct Json {
    /// By layer ID: the state, and when an object was last written.
    layers: Mutex<HashMap<String, (Layer, Instant)>>,
}

impl Json {
    /// Writes a message, about the object `id` or about the whole operation.
    pub(super) fn message(&self, text: &str, id: Option<&str>) -> anyhow::Result<()> {
        let mut object = json!({ "status": text });
        if let Some(id) = id {
            object["id"] = id.into();
        }
        output::line(object)
    }

    /// Applies an event to a layer and writes an object, at most one per [`INTERVAL`] for mere progress. `new` is the
    /// layer's initial state.
    pub(super) fn layer(&self, new: &Layer, apply: impl FnOnce(&mut Layer)) -> anyhow::Result<()> {
        // Held until the object is written, so that the objects of a layer are in order.
        let mut layers = self.layers.lock();
        let known = layers.get(&new.id).cloned();
        let mut layer = known.as_ref().map_or_else(|| new.clone(), |(layer, _)| layer.clone());
        apply(&mut layer);
        let is_running = matches!(layer.stage, Stage::Downloading | Stage::Pushing) && layer.got < layer.size;
        let same = known.as_ref().filter(|(before, _)| before.stage == layer.stage);
        let wait = same.is_some_and(|(_, at)| layer.got == 0 || !is_running || at.elapsed() < INTERVAL);
        let at = same.filter(|_| wait).map_or_else(Instant::now, |(_, at)| *at);
        let verified = layer.stage == Stage::Extracting && same.is_none();
        layers.insert(layer.id.clone(), (layer.clone(), at));
        if verified {
            output::line(status(&layer.id, "Download complete", json!({})))?;
        }
        if wait { Ok(()) } else { output::line(status(&layer.id, &layer.stage.words(), detail(&layer))) }
    }

    /// Writes the tag, digest and size of a pushed image.
    pub(super) fn pushed(&self, tag: &str, pushed: &Pushed) -> anyhow::Result<()> {
        let aux = json!({ "Tag": tag, "Digest": pushed.digest.to_string(), "Size": pushed.size });
        output::line(json!({ "progressDetail": {}, "aux": aux }))
    }

    /// Writes the ID, name and digest of a pulled image.
    pub(super) fn pulled(&self, pulled: &Pulled) -> anyhow::Result<()> {
        let mut aux = json!({ "ID": pulled.image.id.to_string() });
        if let Some(name) = pulled.names.first().map(Reference::to_string) {
            aux["Name"] = name.into();
        }
        if let Some(digest) = &pulled.root {
            aux["Digest"] = digest.to_string().into();
        }
        output::line(json!({ "aux": aux }))
    }

    /// Writes the error that ended the operation.
    pub(super) fn failed(&self, error: &anyhow::Error) -> anyhow::Result<()> {
        let text = error.to_string();
        output::line(json!({ "errorDetail": { "message": text }, "error": text }))
    }
}

fn status(id: &str, words: &str, detail: Value) -> Value {
    json!({ "status": words, "progressDetail": detail, "id": id })
}

fn detail(layer: &Layer) -> Value {
    match layer.has_bar() {
        true => json!({ "current": layer.got, "total": layer.size }),
        false => json!({}),
    }
}

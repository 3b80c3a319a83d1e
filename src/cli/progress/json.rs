//! Progress for programs: the objects that Docker's daemon sends its clients.

use super::{Layer, Stage};
use crate::cli::output;
use crate::image::pull::Pulled;
use crate::image::push::Pushed;
use crate::reference::Reference;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So often at most it is said how much of a layer has come.
const INTERVAL: Duration = Duration::from_millis(100);

/// Writes JSON objects, one a line.
#[derive(Default)]
pub(super) struct Json {
    /// By ID, with what was said of it last and when.
    layers: Mutex<HashMap<String, (Layer, Instant)>>,
}

impl Json {
    /// Something to read, about something or about it all.
    pub(super) fn message(&self, text: &str, id: Option<&str>) -> anyhow::Result<()> {
        let mut object = json!({ "status": text });
        if let Some(id) = id {
            object["id"] = id.into();
        }
        output::line(object)
    }

    /// What happened to a layer, unless that is only that a little more has come or gone out; `new` is it when nothing has.
    pub(super) fn layer(&self, new: &Layer, happened: impl FnOnce(&mut Layer)) -> anyhow::Result<()> {
        // Held until it is written, so that a layer's lines stand in their order.
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = layers.get(&new.id).cloned();
        let mut layer = known.as_ref().map_or_else(|| new.clone(), |(layer, _)| layer.clone());
        happened(&mut layer);
        let goes_on = matches!(layer.stage, Stage::Downloading | Stage::Pushing) && layer.got < layer.size;
        let same = known.as_ref().filter(|(before, _)| before.stage == layer.stage);
        let wait = same.is_some_and(|(_, at)| layer.got == 0 || !goes_on || at.elapsed() < INTERVAL);
        let at = same.filter(|_| wait).map_or_else(Instant::now, |(_, at)| *at);
        let verified = layer.stage == Stage::Extracting && same.is_none();
        layers.insert(layer.id.clone(), (layer.clone(), at));
        if verified {
            output::line(status(&layer.id, "Download complete", json!({})))?;
        }
        if wait { Ok(()) } else { output::line(status(&layer.id, &layer.stage.words(), detail(&layer))) }
    }

    /// What the registry has now.
    pub(super) fn pushed(&self, tag: &str, pushed: &Pushed) -> anyhow::Result<()> {
        let aux = json!({ "Tag": tag, "Digest": pushed.digest.to_string(), "Size": pushed.size });
        output::line(json!({ "progressDetail": {}, "aux": aux }))
    }

    /// What the store has now.
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

    /// Why it ended.
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

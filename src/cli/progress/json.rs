//! Progress for programs: the objects that Docker's daemon sends its clients.

use super::{Layer, Stage};
use crate::cli::output;
use crate::image::pull::{Event, Pulled};
use crate::image::source::LayerPlan;
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

    /// What happened to a layer, unless that is only that a little more has come.
    pub(super) fn layer(&self, plan: &LayerPlan, event: Event) -> anyhow::Result<()> {
        // Held until it is written, so that a layer's lines stand in their order.
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = layers.get(plan.short());
        let before = known.map(|(layer, at)| (layer.stage, *at));
        let mut layer = known.map_or_else(|| Layer::new(plan), |(layer, _)| layer.clone());
        layer.heed(event);
        let goes_on = layer.stage == Stage::Downloading && layer.got < layer.size;
        let wait = before.is_some_and(|(stage, at)| {
            stage == layer.stage && (event == Event::Started || !goes_on || at.elapsed() < INTERVAL)
        });
        let at = before.filter(|_| wait).map_or_else(Instant::now, |(_, at)| at);
        layers.insert(layer.id.clone(), (layer.clone(), at));
        if event == Event::Verified {
            output::line(status(&layer.id, "Download complete", json!({})))?;
        }
        if wait { Ok(()) } else { output::line(status(&layer.id, &layer.stage.words(), detail(&layer))) }
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

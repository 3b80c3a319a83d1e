//! The state of a stage between two instructions: config, arguments, layers and history.

use crate::digest::Digest;
use crate::dockerfile::Config;
use crate::image::Platform;
use crate::store::{LayerRecord, chain_ids};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Arguments that are in scope without `ARG`, and are neither in the cache's keys nor in the history.
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// Docker's default `PATH`.
const PATH: &str = crate::container::spec::PATH;
/// Fields of a base image's document that do not hold for the new image.
const DROPPED: [&str; 8] =
    ["container", "container_config", "docker_version", "id", "parent", "created", "history", "rootfs"];

/// Whether a build argument is one of the predefined proxies.
pub fn is_proxy(name: &str) -> bool {
    PROXIES.contains(&name)
}

/// The state of a stage.
#[derive(Clone)]
pub struct State {
    /// Layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// The config.
    pub config: Config,
    /// Arguments in scope.
    pub args: BTreeMap<String, String>,
    /// The document's other fields.
    fields: Map<String, Value>,
    history: Vec<Value>,
    author: Option<String>,
    /// When the topmost layer was made.
    created: Option<String>,
}

impl State {
    /// A stage from nothing.
    pub fn scratch(platform: &Platform) -> State {
        let mut fields = Map::new();
        fields.insert("architecture".into(), json!(platform.architecture));
        fields.extend(platform.variant.as_ref().map(|variant| ("variant".to_owned(), json!(variant))));
        fields.insert("os".into(), json!(platform.os));
        let mut config = Map::new();
        config.insert("Env".into(), json!([format!("PATH={PATH}")]));
        config.insert("WorkingDir".into(), json!("/"));
        State {
            layers: Vec::new(),
            config: Config::new(config),
            args: BTreeMap::new(),
            fields,
            history: Vec::new(),
            author: None,
            created: None,
        }
    }

    /// A stage from an image with that document.
    pub fn of_image(layers: Vec<LayerRecord>, mut document: Map<String, Value>) -> State {
        let config = match document.shift_remove("config") {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        let history = match document.get("history") {
            Some(Value::Array(steps)) => steps.clone(),
            _ => Vec::new(),
        };
        let text = |name: &str| document.get(name).and_then(Value::as_str).map(str::to_owned);
        let (created, author) = (text("created"), text("author"));
        DROPPED.iter().for_each(|name| drop(document.shift_remove(*name)));
        let config = Config::new(config);
        State { layers, config, args: BTreeMap::new(), fields: document, history, author, created }
    }

    /// A stage from another one.
    pub fn of_stage(other: &State) -> State {
        State { config: Config::new(other.config.fields.clone()), ..other.clone() }
    }

    /// ChainID of the layers; for none, the digest of the empty string.
    pub fn chain(&self) -> Digest {
        chain_ids(self.layers.iter().map(|layer| &layer.diff_id)).pop().unwrap_or_else(|| Digest::of(b""))
    }

    /// Returns the value of a variable: the environment goes before arguments.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.config.variable(name).or_else(|| self.args.get(name).cloned())
    }

    /// Sets the author.
    pub fn set_author(&mut self, author: &str) {
        self.author = Some(author.to_owned());
    }

    /// Adds an instruction to the history, with the layer that it made.
    pub fn add_step(&mut self, created_by: &str, layer: Option<(LayerRecord, &str)>) {
        let mut step = Map::new();
        if let Some((layer, created)) = &layer {
            self.created = Some((*created).to_owned());
            self.layers.push(layer.clone());
        }
        step.extend(self.created.as_ref().map(|created| ("created".to_owned(), json!(created))));
        step.insert("created_by".into(), json!(created_by));
        step.extend(self.author.as_ref().map(|author| ("author".to_owned(), json!(author))));
        if layer.is_none() {
            step.insert("empty_layer".into(), json!(true));
        }
        self.history.push(Value::from(step));
    }

    /// When the topmost layer was made.
    pub fn created(&self) -> Option<Timestamp> {
        self.created.as_ref()?.parse().ok()
    }

    /// Makes the image's document.
    pub fn document(&self, labels: &[(String, String)], created: Timestamp) -> Vec<u8> {
        let mut config = self.config.fields.clone();
        if !labels.is_empty() {
            let mut all = config.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
            all.extend(labels.iter().map(|(key, value)| (key.clone(), json!(value))));
            config.insert("Labels".into(), Value::from(all));
        }
        let mut document = self.fields.clone();
        document.extend(self.author.as_ref().map(|author| ("author".to_owned(), json!(author))));
        document.insert("config".into(), Value::from(config));
        document.insert("created".into(), json!(created.to_string()));
        document.insert("history".into(), Value::from(self.history.clone()));
        let diff_ids: Vec<&Digest> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        document.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
        Value::from(document).to_string().into_bytes()
    }
}

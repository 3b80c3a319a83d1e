//! `inspect` and `image inspect`.

use super::{Exit, Global, args, format, inspect_container, output};
use crate::image::manifest::DOCUMENT_CAP;
use crate::reference::Reference;
use crate::store::{self, Image, Store, containers};
use crate::template::{Data, Error, Functions, MissingKey, Record, Template};
use serde_json::{Map, Value, json};
use std::rc::Rc;

/// What a config may hold, as Docker knows it.
pub(super) const CONFIG_TEXTS: &[&str] = &["Hostname", "Domainname", "User", "Image", "WorkingDir", "StopSignal"];
pub(super) const CONFIG_LISTS: &[&str] = &["Env", "Cmd", "Entrypoint", "OnBuild", "Shell"];
pub(super) const CONFIG_MAPS: &[&str] = &["ExposedPorts", "Volumes", "Labels"];
const IMAGE_TEXTS: &[&str] = &["Parent", "DockerVersion", "Container", "Variant", "OsVersion"];

#[derive(clap::Args)]
#[command(override_usage = "plyfs inspect [OPTIONS] NAME|ID...")]
#[command(after_help = "\
Examples:
  plyfs inspect web
  plyfs inspect -f '{{.State.Status}}' web
  plyfs inspect --type image -f '{{json .Config.Env}}' debian:12")]
pub(super) struct InspectArgs {
    /// `json` for one line of JSON for each, or a Go template over what would be shown
    #[arg(short, long)]
    format: Option<String>,
    /// What to look for: container or image [default: containers, then images]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Show how much containers have written
    #[arg(short, long)]
    size: bool,
    /// Containers and images
    #[arg(value_name = "NAME|ID")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs image inspect [OPTIONS] IMAGE...")]
#[command(after_help = "\
Examples:
  plyfs image inspect debian:12
  plyfs image inspect -f '{{json .Config.Env}}' debian:12
  plyfs image inspect -f '{{range .RootFS.Layers}}{{println .}}{{end}}' debian:12")]
pub(super) struct ImageInspectArgs {
    /// `json` for one line of JSON for each image, or a Go template over what would be shown
    #[arg(short, long)]
    format: Option<String>,
    /// Images
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

/// Something that was found, in Docker's shape.
enum Found {
    Image(Value),
    Container(Value),
}

/// `inspect`: each name is a container's, or else an image's.
pub(super) fn inspect(global: &Global, a: &InspectArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("inspect", &a.args)?;
    let kind = match a.kind.as_deref() {
        Some(kind) if !["container", "image"].contains(&kind) => {
            anyhow::bail!("unknown type: \"{kind}\": must be one of \"container\", \"image\"")
        }
        kind => kind,
    };
    let store = global.store()?;
    let find = |text: &str| {
        if kind != Some("image") {
            match containers::find(&store, text) {
                Ok(found) => return inspect_container::describe(&store, &found, a.size).map(Found::Container),
                Err(store::Error::NoSuchContainer(_)) if kind.is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        match store.resolve(text) {
            Ok(image) => describe(&store, &image).map(Found::Image),
            Err(store::Error::NoSuchImage(_)) if kind.is_none() => anyhow::bail!("No such object: {text}"),
            Err(error) => Err(error.into()),
        }
    };
    show(wanted, a.format.as_deref(), find)
}

/// `container inspect`: what `inspect` is, of containers only.
pub(super) fn inspect_containers(global: &Global, a: InspectArgs) -> anyhow::Result<()> {
    inspect(global, &InspectArgs { kind: Some("container".into()), ..a })
}

/// `image inspect`.
pub(super) fn inspect_images(global: &Global, a: &ImageInspectArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("image inspect", &a.args)?;
    let store = global.store()?;
    show(wanted, a.format.as_deref(), |text| describe(&store, &store.resolve(text)?).map(Found::Image))
}

/// Shows what is found, then says what is not.
fn show(wanted: &[String], format: Option<&str>, find: impl Fn(&str) -> anyhow::Result<Found>) -> anyhow::Result<()> {
    let template = match format {
        None | Some("") => None,
        Some("json") => Some(format::parse("{{json .}}")?),
        Some(text) => Some(format::parse(text)?),
    };
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for text in wanted {
        match find(text) {
            Ok(thing) => found.push(thing),
            Err(error) => missing.push(error),
        }
    }
    match &template {
        Some(template) => {
            for thing in &found {
                output::line(fill(template, thing).map_err(format::failed)?)?;
            }
        }
        None => output::json(&found.iter().map(Found::value).collect::<Vec<_>>())?,
    }
    for error in &missing {
        output::complaint(format_args!("Error: {error}"));
    }
    if missing.is_empty() { Ok(()) } else { Err(Exit::Said(1).into()) }
}

impl Found {
    fn value(&self) -> &Value {
        match self {
            Found::Image(value) | Found::Container(value) => value,
        }
    }
}

/// The image's config as it came.
pub(super) fn config(store: &Store, image: &Image) -> anyhow::Result<Map<String, Value>> {
    let bytes = store.blob(&image.id, DOCUMENT_CAP)?;
    let wrong = |e| anyhow::anyhow!("image {} is damaged: its config: {e}; pull it again", image.title());
    serde_json::from_slice(&bytes).map_err(wrong)
}

/// Docker takes what it found for a thing with known fields, and for plain JSON where the template does not fit that.
fn fill(template: &Template, found: &Found) -> Result<String, Error> {
    let typed = match found {
        Found::Image(image) => typed(image),
        Found::Container(container) => inspect_container::typed(container),
    };
    let filled = template.execute(&typed, MissingKey::NoValue, Functions::Data);
    filled.or_else(|_| template.execute(&Data::from(found.value()), MissingKey::Error, Functions::Data))
}

/// The image with Docker's fields, those too that it does not have.
fn typed(image: &Value) -> Data {
    let mut record = record(image, "image.InspectResponse", IMAGE_TEXTS, &[], &[]);
    for (name, value) in &mut record.fields {
        *value = match name.as_str() {
            "Config" => {
                let config = self::record(&image[&*name], "Config", CONFIG_TEXTS, CONFIG_LISTS, CONFIG_MAPS);
                Data::Struct(Rc::new(config))
            }
            "GraphDriver" | "RootFS" | "Metadata" => {
                Data::Struct(Rc::new(self::record(&image[&*name], "", &[], &[], &[])))
            }
            _ => continue,
        };
    }
    Data::Struct(Rc::new(record))
}

/// An object as a thing; what it lacks of the given texts, lists and maps is there, empty.
pub(super) fn record(value: &Value, type_name: &'static str, texts: &[&str], lists: &[&str], maps: &[&str]) -> Record {
    let none = Map::new();
    let object = value.as_object().unwrap_or(&none);
    let known = [(texts, Data::str("")), (lists, Data::NilList), (maps, Data::NilMap)];
    let empty_of = |name: &str| known.iter().find(|(names, _)| names.contains(&name)).map(|(_, empty)| empty.clone());
    let of = |name: &str, value: &Value| match value {
        Value::Null => empty_of(name).unwrap_or(Data::Nil),
        // Sets in Docker's types: keys without a value.
        Value::Object(set) if matches!(name, "ExposedPorts" | "Volumes") => {
            let nothing = || Data::record("struct {}", vec![]);
            Data::Map(Rc::new(set.keys().map(|key| (key.clone(), nothing())).collect()))
        }
        value => Data::from(value),
    };
    let fields = object.iter().map(|(name, value)| (name.clone(), of(name, value))).collect();
    let missing = known.iter().flat_map(|(names, _)| names.iter()).filter(|name| !object.contains_key(**name));
    let empty = missing.filter_map(|name| Some(((*name).to_owned(), empty_of(name)?))).collect();
    Record { type_name, fields, empty, escape_html: false }
}

/// The image in Docker's shape.
fn describe(store: &Store, image: &Image) -> anyhow::Result<Value> {
    let config = config(store, image)?;
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    let names = |list: &[Reference]| list.iter().map(Reference::familiar).collect::<Vec<_>>();
    let history = config.get("history").and_then(Value::as_array);
    let comment = history.and_then(|h| h.last()?.get("comment")?.as_str()).unwrap_or_default();
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
    put("Id", json!(image.id));
    put("RepoTags", json!(names(&image.tags)));
    put("RepoDigests", json!(names(&image.digests)));
    put("Comment", json!(config.get("comment").and_then(Value::as_str).unwrap_or(comment)));
    put("Created", json!(text("created")));
    put("Author", json!(text("author")));
    put("Config", config.get("config").cloned().unwrap_or_else(|| json!({})));
    put("Architecture", json!(text("architecture")));
    if !text("variant").is_empty() {
        put("Variant", json!(text("variant")));
    }
    put("Os", json!(text("os")));
    put("Size", json!(image.size()));
    put("GraphDriver", json!({ "Data": graph_data(store, image), "Name": "plyfs" }));
    let diff_ids: Vec<String> = image.layers.iter().map(|l| l.diff_id.to_string()).collect();
    put("RootFS", json!({ "Type": "layers", "Layers": diff_ids }));
    put("Metadata", json!({ "LastTagTime": image.pulled }));
    Ok(Value::Object(out))
}

/// Where the layers' tars are, the top one first as Docker lists lower directories.
fn graph_data(store: &Store, image: &Image) -> Value {
    let dirs = image.layers.iter().rev().map(|l| store.layer_dir(&l.diff_id).display().to_string());
    json!({ "LayerDirs": dirs.collect::<Vec<_>>().join(":") })
}

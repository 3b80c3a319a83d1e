//! `inspect` and `image inspect`: show details of containers and images as JSON.

use crate::cli::container::inspect as inspect_container;
use crate::cli::image::document::{self, CONFIG_LISTS, CONFIG_MAPS, CONFIG_TEXTS, config};
use crate::cli::output::format;
use crate::cli::output::stdout as output;
use crate::cli::{Exit, Global, usage_errors};
use crate::reference::Reference;
use crate::store::{self, Image, Store, containers};
use crate::template::{Data, Error, Functions, MissingKey, Template};
use serde_json::{Map, Value, json};
use std::rc::Rc;

const IMAGE_TEXTS: &[&str] = &["Parent", "DockerVersion", "Container", "Variant", "OsVersion"];

#[derive(clap::Args)]
#[command(override_usage = "plyfs inspect [OPTIONS] NAME|ID...")]
#[command(after_help = "\
Examples:
  plyfs inspect web
  plyfs inspect -f '{{.State.Status}}' web
  plyfs inspect --type image -f '{{json .Config.Env}}' debian:12")]
pub(in crate::cli) struct InspectArgs {
    /// Format output: `json` for one line of JSON per object, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Only inspect objects of this type: container or image [default: containers, then images]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Show the disk usage of containers
    #[arg(short, long)]
    size: bool,
    /// Containers and images to show
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
pub(in crate::cli) struct ImageInspectArgs {
    /// Format output: `json` for one line of JSON per image, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Images to show
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

/// An inspected object, in Docker's format.
enum Found {
    Image(Value),
    Container(Value),
}

/// Runs `inspect`: looks up each name as a container, then as an image.
pub(in crate::cli) fn inspect(global: &Global, a: &InspectArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("inspect", &a.args)?;
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

/// Runs `container inspect`: `inspect` limited to containers.
pub(in crate::cli) fn inspect_containers(global: &Global, a: InspectArgs) -> anyhow::Result<()> {
    inspect(global, &InspectArgs { kind: Some("container".into()), ..a })
}

/// Runs `image inspect`.
pub(in crate::cli) fn inspect_images(global: &Global, a: &ImageInspectArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("image inspect", &a.args)?;
    let store = global.store()?;
    show(wanted, a.format.as_deref(), |text| describe(&store, &store.resolve(text)?).map(Found::Image))
}

/// Prints the objects found, then an error for each missing one.
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

/// Fills a template as Docker does: with the typed object, or with its plain JSON if the template does not fit the
/// type.
fn fill(template: &Template, found: &Found) -> Result<String, Error> {
    let typed = match found {
        Found::Image(image) => typed(image),
        Found::Container(container) => inspect_container::typed(container),
    };
    let filled = template.execute(&typed, MissingKey::NoValue, Functions::Data);
    filled.or_else(|_| template.execute(&Data::from(found.value()), MissingKey::Error, Functions::Data))
}

/// Converts an image to Docker's type, with all its fields.
fn typed(image: &Value) -> Data {
    let mut record = document::record(image, "image.InspectResponse", IMAGE_TEXTS, &[], &[]);
    for (name, value) in &mut record.fields {
        *value = match name.as_str() {
            "Config" => {
                let config = document::record(&image[&*name], "Config", CONFIG_TEXTS, CONFIG_LISTS, CONFIG_MAPS);
                Data::Struct(Rc::new(config))
            }
            "GraphDriver" | "RootFS" | "Metadata" => {
                Data::Struct(Rc::new(document::record(&image[&*name], "", &[], &[], &[])))
            }
            _ => continue,
        };
    }
    Data::Struct(Rc::new(record))
}

/// Describes an image in Docker's format.
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

/// Returns the paths of the layers' tars, top layer first, as Docker lists lower directories.
fn graph_data(store: &Store, image: &Image) -> Value {
    let dirs = image.layers.iter().rev().map(|l| store.layer_dir(&l.diff_id).display().to_string());
    json!({ "LayerDirs": dirs.collect::<Vec<_>>().join(":") })
}

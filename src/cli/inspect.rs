//! `inspect` and `image inspect`.

use super::{Exit, Global, args, output};
use crate::image::manifest::DOCUMENT_CAP;
use crate::reference::Reference;
use crate::store::{Image, Store};
use serde_json::{Map, Value, json};

#[derive(clap::Args)]
#[command(override_usage = "plyfs inspect [OPTIONS] IMAGE...")]
pub(super) struct InspectArgs {
    /// `json` for one line of JSON for each image
    #[arg(short, long)]
    format: Option<String>,
    /// Images
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(super) fn inspect(global: &Global, a: &InspectArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("inspect", &a.args)?;
    let lines = match a.format.as_deref() {
        None | Some("") => false,
        Some("json") => true,
        Some(_) => return Err(Exit::Text(64, "template parsing error: only `json` is supported so far".into()).into()),
    };
    let store = global.store()?;
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for text in wanted {
        match store.resolve(text) {
            Ok(image) => found.push(describe(&store, &image)?),
            Err(error) => missing.push(error),
        }
    }
    if lines {
        for image in &found {
            output::line(serde_json::to_string(image)?)?;
        }
    } else {
        output::json(&found)?;
    }
    for error in &missing {
        output::complaint(format_args!("Error: {error}"));
    }
    if missing.is_empty() { Ok(()) } else { Err(Exit::Said(1).into()) }
}

/// The image in Docker's shape.
fn describe(store: &Store, image: &Image) -> anyhow::Result<Value> {
    let broken = |why: String| anyhow::anyhow!("image {} is damaged: its config: {why}; pull it again", image.title());
    let bytes = store.blob(&image.id, DOCUMENT_CAP).map_err(|e| broken(e.to_string()))?;
    let config: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
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

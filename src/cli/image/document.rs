//! Image config, and JSON documents as typed records for Go templates.

use crate::image::manifest::DOCUMENT_CAP;
use crate::store::{Image, Store};
use crate::template::{Data, Record};
use serde_json::{Map, Value};
use std::rc::Rc;

/// Text fields of a config in Docker's types.
pub(in crate::cli) const CONFIG_TEXTS: &[&str] =
    &["Hostname", "Domainname", "User", "Image", "WorkingDir", "StopSignal"];
pub(in crate::cli) const CONFIG_LISTS: &[&str] = &["Env", "Cmd", "Entrypoint", "OnBuild", "Shell"];
pub(in crate::cli) const CONFIG_MAPS: &[&str] = &["ExposedPorts", "Volumes", "Labels"];

/// Reads the image's config, unchanged.
pub(in crate::cli) fn config(store: &Store, image: &Image) -> anyhow::Result<Map<String, Value>> {
    let bytes = store.blob(&image.id, DOCUMENT_CAP)?;
    let wrong = |e| anyhow::anyhow!("image {} is damaged: its config: {e}; pull it again", image.title());
    serde_json::from_slice(&bytes).map_err(wrong)
}

/// Converts a JSON object to a record; missing ones of the given text, list and map fields are added, empty.
pub(in crate::cli) fn record(
    value: &Value,
    type_name: &'static str,
    texts: &[&str],
    lists: &[&str],
    maps: &[&str],
) -> Record {
    let none = Map::new();
    let object = value.as_object().unwrap_or(&none);
    let known = [(texts, Data::str("")), (lists, Data::NilList), (maps, Data::NilMap)];
    let empty_of = |name: &str| known.iter().find(|(names, _)| names.contains(&name)).map(|(_, empty)| empty.clone());
    let of = |name: &str, value: &Value| match value {
        Value::Null => empty_of(name).unwrap_or(Data::Nil),
        // Docker's type is a set: keys without values.
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

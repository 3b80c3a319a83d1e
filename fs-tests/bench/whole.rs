//! The test image without the layers that other engines cannot unpack.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::oci;

/// Layers below this size are left out: they hold entries that the other engines cannot unpack, and hardly any data.
const MIN_LAYER_SIZE: u64 = 1 << 20;

/// Reads a JSON document of a layout.
pub fn read_json(layout: &Path, digest: &str) -> io::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(layout.join(oci::blob_path(digest)))?)?)
}

/// The text of a JSON document.
pub fn text(value: &Value) -> io::Result<&str> {
    value.as_str().ok_or_else(|| io::Error::other("no text where a digest should be"))
}

/// Writes a JSON document into a layout, and its digest and size into a descriptor.
pub fn put(layout: &Path, descriptor: &mut Value, document: &Value) -> io::Result<()> {
    let bytes = document.to_string().into_bytes();
    let described = oci::descriptor(&bytes, "");
    (descriptor["digest"], descriptor["size"]) = (described["digest"].clone(), described["size"].clone());
    fs::write(layout.join(oci::blob_path(text(&described["digest"])?)), bytes)
}

/// Creates an image of the layers that hold data. Returns their blobs.
pub fn copy_data_layers(from: &Path, to: &Path) -> io::Result<Vec<PathBuf>> {
    let mut index: Value = serde_json::from_slice(&fs::read(from.join("index.json"))?)?;
    let mut manifest = read_json(from, text(&index["manifests"][0]["digest"])?)?;
    let mut config = read_json(from, text(&manifest["config"]["digest"])?)?;
    let all = manifest["layers"].as_array().cloned().unwrap_or_default();
    let wanted: Vec<usize> = (0..all.len()).filter(|n| all[*n]["size"].as_u64() >= Some(MIN_LAYER_SIZE)).collect();
    manifest["layers"] = wanted.iter().map(|n| all[*n].clone()).collect();
    config["rootfs"]["diff_ids"] = wanted.iter().map(|n| config["rootfs"]["diff_ids"][*n].clone()).collect();
    config["history"] = Value::Array(Vec::new());
    fs::create_dir_all(to.join("blobs/sha256"))?;
    put(to, &mut manifest["config"], &config)?;
    put(to, &mut index["manifests"][0], &manifest)?;
    fs::write(to.join("index.json"), index.to_string())?;
    fs::copy(from.join("oci-layout"), to.join("oci-layout"))?;
    let mut blobs = Vec::new();
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let path = oci::blob_path(text(&layer["digest"])?);
        fs::copy(from.join(&path), to.join(&path))?;
        blobs.push(to.join(path));
    }
    Ok(blobs)
}

//! Images out again: one archive that `docker load` takes and that is an OCI layout too, as Docker writes since 25.
//!
//! Configs are the bytes that came in, layers the stored tars, each checked against its digest while it is written; a
//! layer that several images share is there once. Times are zero, so that the same images make the same archive.

use super::manifest::DOCUMENT_CAP;
use super::{Error, Result};
use crate::digest::{Digest, Verifier};
use crate::reference::Reference;
use crate::store::{self, Image, Intent, Session, Store};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BUFFER: usize = 256 << 10;

/// An image with the names under which it is to be saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// The image.
    pub image: Image,
    /// Its names in the archive, all with a tag.
    pub names: Vec<Reference>,
}

/// Finds the images to save: `name:tag` saves that name, `name` all tags of the repository, an ID or a digest the image
/// without a name. One image is saved once, with all the names asked for.
pub fn choose(store: &Store, wanted: &[String]) -> Result<Vec<Saved>> {
    let catalog = store.catalog()?;
    let mut chosen: Vec<Saved> = Vec::new();
    for text in wanted {
        let parsed = text.parse::<Reference>().ok();
        let bare = parsed.as_ref().filter(|r| r.tag().is_none() && r.digest().is_none());
        let of_repository =
            |image: &&Image| bare.is_some_and(|bare| image.tags.iter().any(|tag| tag.name() == bare.name()));
        let mut found: Vec<&Image> = catalog.images().iter().filter(of_repository).collect();
        let whole_repository = !found.is_empty();
        if !whole_repository {
            found.push(catalog.resolve(text)?);
        }
        for image in found {
            let meant = |tag: &&Reference| match (&parsed, whole_repository) {
                (Some(parsed), true) => tag.name() == parsed.name(),
                (Some(parsed), false) => *tag == parsed,
                (None, _) => false,
            };
            let names = image.tags.iter().filter(meant);
            let at = chosen.iter().position(|saved| saved.image.id == image.id).unwrap_or(chosen.len());
            if at == chosen.len() {
                chosen.push(Saved { image: image.clone(), names: Vec::new() });
            }
            let missing: Vec<Reference> = names.filter(|name| !chosen[at].names.contains(name)).cloned().collect();
            chosen[at].names.extend(missing);
        }
    }
    Ok(chosen)
}

/// Writes the archive. Nothing that it needs can be removed in the meantime.
pub fn save(store: &Store, images: &[Saved], out: impl Write) -> Result<()> {
    let session = Session::begin(store)?;
    let layers = images.iter().flat_map(|s| s.image.layers.iter().map(|l| l.diff_id.clone())).collect();
    let blobs = images.iter().map(|s| s.image.id.clone()).collect();
    session.intend(&Intent { layers, blobs, ..Intent::default() })?;
    let mut archive = Archive { store, out: tar::Builder::new(out), written: BTreeSet::new() };
    for folder in ["blobs/", "blobs/sha256/"] {
        archive.folder(folder)?;
    }
    let sha512 = images.iter().flat_map(|s| s.image.layers.iter().map(|l| &l.diff_id).chain([&s.image.id]));
    if sha512.into_iter().any(|d| d.algorithm().name() == "sha512") {
        archive.folder("blobs/sha512/")?;
    }
    let mut index = Vec::new();
    let mut items = Vec::new();
    for saved in images {
        let manifest = archive.image(&saved.image)?;
        index.extend(entries(&manifest, &saved.names));
        let tags: Vec<String> = saved.names.iter().map(Reference::familiar).collect();
        let members: Vec<String> = saved.image.layers.iter().map(|l| place(&l.diff_id)).collect();
        let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
        items.push(json!({ "Config": place(&saved.image.id), "RepoTags": tags, "Layers": members }));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": index,
    });
    archive.file("index.json", index.to_string().as_bytes())?;
    archive.file("manifest.json", Value::from(items).to_string().as_bytes())?;
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut out = archive.out.into_inner().map_err(failed)?;
    out.flush().map_err(failed)
}

/// A manifest's entries in the index: one for each name.
fn entries(manifest: &Value, names: &[Reference]) -> Vec<Value> {
    if names.is_empty() {
        return vec![manifest.clone()];
    }
    let named = |name: &Reference| {
        let mut entry = manifest.clone();
        entry["annotations"] = json!({
            "io.containerd.image.name": name.to_string(),
            "org.opencontainers.image.ref.name": name.tag(),
        });
        entry
    };
    names.iter().map(named).collect()
}

fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn failed(cause: io::Error) -> Error {
    Error::Output(cause)
}

struct Archive<'a, W: Write> {
    store: &'a Store,
    out: tar::Builder<W>,
    written: BTreeSet<Digest>,
}

impl<W: Write> Archive<'_, W> {
    fn folder(&mut self, name: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        self.out.append_data(&mut header, name, io::empty()).map_err(failed)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.stream(name, bytes.len() as u64, bytes)
    }

    fn stream(&mut self, name: &str, size: u64, bytes: impl Read) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o444);
        header.set_size(size);
        self.out.append_data(&mut header, name, bytes).map_err(failed)
    }

    /// Writes what of the image is not there yet; returns its manifest's descriptor.
    fn image(&mut self, image: &Image) -> Result<Value> {
        let config = self.store.blob(&image.id, DOCUMENT_CAP)?;
        if self.written.insert(image.id.clone()) {
            self.file(&place(&image.id), &config)?;
        }
        let mut layers = Vec::new();
        for layer in &image.layers {
            if self.written.insert(layer.diff_id.clone()) {
                self.layer(image, &layer.diff_id, layer.size)?;
            }
            layers.push(json!({ "mediaType": OCI_LAYER, "digest": layer.diff_id, "size": layer.size }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": image.id, "size": config.len() },
            "layers": layers,
        });
        let manifest = manifest.to_string();
        let digest = Digest::of(manifest.as_bytes());
        if self.written.insert(digest.clone()) {
            self.file(&place(&digest), manifest.as_bytes())?;
        }
        Ok(json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len() }))
    }

    fn layer(&mut self, image: &Image, diff_id: &Digest, size: u64) -> Result<()> {
        let path = self.store.layer_tar(diff_id);
        let file = File::open(&path).map_err(store::Error::io("open", &path))?;
        let broken = |why: String| Error::Broken {
            image: image.title(),
            what: format!("layer {}: {}: {why}", diff_id.short(), path.display()),
        };
        let length = file.metadata().map_err(|e| broken(e.to_string()))?.len();
        if length != size {
            return Err(broken(format!("has {length} bytes, wanted {size}")));
        }
        let mut checked = Verifier::new(io::BufReader::with_capacity(BUFFER, file), diff_id, size);
        self.stream(&place(diff_id), size, &mut checked).map_err(|error| match error {
            Error::Output(e) if e.kind() == io::ErrorKind::InvalidData => broken(e.to_string()),
            other => other,
        })?;
        checked.drain().map_err(|e| broken(e.to_string()))
    }
}

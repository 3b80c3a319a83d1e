//! Saving images: an archive for `docker load` that is also an OCI layout, as Docker writes since version 25; or only
//! one of the two; or an OCI layout in a folder.
//!
//! Configs are the original bytes, layers the stored tars, each verified against its digest while it is written; a
//! layer shared by several images is written once. Times are zero, so the same images give the same archive.

use super::manifest::DOCUMENT_CAP;
use super::{Error, Result, remove};
use crate::digest::{Digest, Verifier};
use crate::reference::Reference;
use crate::store::{self, Image, Intent, Session, Store};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BUFFER: usize = 256 << 10;

/// An image to save, with its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// The image.
    pub image: Image,
    /// Names in the archive, all with a tag.
    pub names: Vec<Reference>,
}

/// Selects the images to save: `name:tag` saves that name, `name` all tags of the repository, an ID or a digest the
/// image without a name. Each image is saved once, with all the names asked for.
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

/// Format of an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Both formats in one archive.
    Both,
    /// For `docker load` only.
    Docker,
    /// OCI layout only.
    Oci,
}

/// Writes the archive. Everything that it needs is protected from removal meanwhile.
pub fn save(store: &Store, images: &[Saved], format: Format, out: impl Write) -> Result<()> {
    let mut archive = TarFile(tar::Builder::new(out));
    write(store, images, format, &mut archive)?;
    let mut out = archive.0.into_inner().map_err(failed)?;
    out.flush().map_err(failed)
}

/// Writes an OCI layout to a new folder, readable by its owner only, and syncs it.
pub fn save_layout(store: &Store, images: &[Saved], folder: &Path) -> Result<()> {
    let mut layout = Folder { path: folder.to_owned(), made: Vec::new() };
    layout.folder("").map_err(failed)?;
    write(store, images, Format::Oci, &mut layout)?;
    let synced = layout.made.iter().rev().try_for_each(|dir| File::open(dir)?.sync_all());
    synced.map_err(failed)
}

fn write(store: &Store, images: &[Saved], format: Format, out: &mut dyn Members) -> Result<()> {
    let session = Session::begin(store)?;
    let mut kept = Intent::default();
    images.iter().for_each(|saved| kept.extend(remove::parts_of(&saved.image)));
    session.intend(&kept)?;
    let done = write_all(store, images, format, out);
    images.iter().try_for_each(|saved| remove::release_image(&session, &saved.image))?;
    done
}

fn write_all(store: &Store, images: &[Saved], format: Format, out: &mut dyn Members) -> Result<()> {
    let mut archive = Archive { store, out, with_manifests: format != Format::Docker, written: BTreeSet::new() };
    for folder in ["blobs/", "blobs/sha256/"] {
        archive.out.folder(folder).map_err(failed)?;
    }
    let sha512 = images.iter().flat_map(|s| s.image.layers.iter().map(|l| &l.diff_id).chain([&s.image.id]));
    if sha512.into_iter().any(|d| d.algorithm().name() == "sha512") {
        archive.out.folder("blobs/sha512/").map_err(failed)?;
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
    if format != Format::Docker {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": index,
        });
        archive.file("index.json", index.to_string().as_bytes())?;
    }
    if format != Format::Oci {
        archive.file("manifest.json", Value::from(items).to_string().as_bytes())?;
    }
    if format != Format::Docker {
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    }
    Ok(())
}

/// Makes a manifest's entries in the index: one per name.
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

/// Output for named files: a tar or a folder.
trait Members {
    /// Creates a folder in an existing one; the name ends with a slash.
    fn folder(&mut self, name: &str) -> io::Result<()>;

    /// Writes a file of `size` bytes.
    fn file(&mut self, name: &str, size: u64, bytes: &mut dyn Read) -> io::Result<()>;
}

struct TarFile<W: Write>(tar::Builder<W>);

impl<W: Write> Members for TarFile<W> {
    fn folder(&mut self, name: &str) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        self.0.append_data(&mut header, name, io::empty())
    }

    fn file(&mut self, name: &str, size: u64, bytes: &mut dyn Read) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o444);
        header.set_size(size);
        self.0.append_data(&mut header, name, bytes)
    }
}

struct Folder {
    path: PathBuf,
    /// Folders created, to be synced at the end.
    made: Vec<PathBuf>,
}

impl Members for Folder {
    fn folder(&mut self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        self.made.push(path);
        Ok(())
    }

    fn file(&mut self, name: &str, _size: u64, bytes: &mut dyn Read) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(self.path.join(name))?;
        io::copy(&mut BufReader::with_capacity(BUFFER, bytes), &mut file)?;
        file.sync_all()
    }
}

struct Archive<'a> {
    store: &'a Store,
    out: &'a mut dyn Members,
    with_manifests: bool,
    written: BTreeSet<Digest>,
}

impl Archive<'_> {
    fn file(&mut self, name: &str, mut bytes: &[u8]) -> Result<()> {
        self.out.file(name, bytes.len() as u64, &mut bytes).map_err(failed)
    }

    /// Writes the image's parts that are not written yet; returns its manifest's descriptor.
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
        if self.with_manifests && self.written.insert(digest.clone()) {
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
        let mut checked = Verifier::new(BufReader::with_capacity(BUFFER, file), diff_id, size);
        self.out.file(&place(diff_id), size, &mut checked).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => broken(e.to_string()),
            _ => failed(e),
        })?;
        checked.drain().map_err(|e| broken(e.to_string()))
    }
}

//! Push: uploads an image to a registry.
//!
//! The store keeps a layer as its plain tar, not the blob that it was pulled as; but the manifests with which an image
//! was pulled or pushed before name blobs of its layers. Such a blob is used if the registry has it, in this repository
//! or in another one (cross-repository mount). Any other layer is compressed and uploaded in chunks at the same time,
//! and verified against its DiffID. If all blobs of the original manifest are there, the image is pushed with that
//! manifest, byte for byte; the config's bytes never change.

use super::deflate::{self, Compression};
use super::manifest::{self, DOCUMENT_CAP, Descriptor, Family};
use super::{Error, FORMATS, Problem, Result, layer_workers, remove};
use crate::digest::{Algorithm, Digest, Hasher, Verifier};
use crate::reference::Reference;
use crate::registry::{self, Kind, Repository, Settings, Upload, UploadStart};
use crate::store::{Catalog, Image, Intent, LayerRecord, Session, Store, gc};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Chunk size of uploads, in bytes; registries may reject less than 5 MiB except for the last chunk.
const CHUNK: usize = 8 << 20;
const BUFFER: usize = 256 << 10;
/// Maximum number of repositories tried for a cross-repository mount of a blob.
const GUESSES: usize = 3;
/// Number of times a blob is uploaded from its beginning if the registry loses the upload.
const TRIES: u32 = 3;

/// Compression settings of a push.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Packing {
    /// Compression of all layers; `None`: as in the registry, else gzip.
    pub compression: Option<Compression>,
    /// Compression level.
    pub level: Option<u32>,
}

/// Progress event of a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The layer is being prepared.
    Preparing,
    /// Number of bytes of the tar that were compressed and sent.
    Sent(u64),
    /// The layer was uploaded.
    Pushed,
    /// The repository had the layer.
    Exists,
    /// The registry mounted the layer from this repository.
    Mounted(String),
    /// The layer is non-distributable: its manifest names its URLs.
    Foreign,
}

/// Receiver of a push's progress, called by several threads.
pub trait Progress: Sync {
    /// Reports an event of a layer.
    fn layer(&self, layer: &LayerRecord, event: Event);
}

/// A pushed image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pushed {
    /// Digest of its manifest in the registry.
    pub digest: Digest,
    /// Size of the manifest, in bytes.
    pub size: u64,
    /// Media type of the manifest.
    pub media_type: &'static str,
}

/// Selects the images to push for a name, each with its full name: the image with that name, or with `all` every image
/// that has a tag of the repository.
pub fn choose(store: &Store, name: &Reference, all: bool) -> Result<Vec<(Image, Reference)>> {
    if name.digest().is_some() {
        return Err(Error::Usage("cannot push a digest reference".into()));
    }
    let catalog = store.catalog()?;
    let tags = |image: &Image| image.tags.iter().filter(|t| t.name() == name.name()).cloned().collect::<Vec<_>>();
    let mut of_repository: Vec<(Image, Reference)> =
        catalog.images().iter().flat_map(|i| tags(i).into_iter().map(|tag| (i.clone(), tag))).collect();
    if of_repository.is_empty() {
        let what = name.familiar_name();
        return Err(Error::Usage(format!("An image does not exist locally with the tag: {what}")));
    }
    if !all {
        let wanted = name.clone().or_latest();
        of_repository.retain(|(_, tag)| *tag == wanted);
        if of_repository.is_empty() {
            return Err(Error::Usage(format!("tag does not exist: {}", wanted.familiar())));
        }
    }
    Ok(of_repository)
}

/// Uploads the image to the registry and repository of `to`, under its tag; without one, only by digest. Records the image's name by digest and the
/// pushed manifest in the store.
pub fn push(
    session: &Session,
    image: &Image,
    to: &Reference,
    settings: &Settings,
    packing: Packing,
    progress: &dyn Progress,
) -> Result<Pushed> {
    let done = put(session, image, to, settings, packing, progress);
    remove::release_image(session, image)?;
    done
}

fn put(
    session: &Session,
    image: &Image,
    to: &Reference,
    settings: &Settings,
    packing: Packing,
    progress: &dyn Progress,
) -> Result<Pushed> {
    let store = session.store();
    session.intend(&remove::parts_of(image))?;
    let out = Out {
        store,
        image,
        to,
        repository: Repository::to_write(to, settings),
        known: known(store, &store.catalog()?, image, to),
        packing,
        progress,
    };
    let mut layers: Vec<&LayerRecord> = Vec::new();
    for layer in &image.layers {
        if !layers.iter().any(|l| l.diff_id == layer.diff_id) {
            progress.layer(layer, Event::Preparing);
            layers.push(layer);
        }
    }
    let blobs = layer_workers::run(layers.iter().copied(), |layer| out.layer(layer), || out.repository.cancel())?;
    let placed: BTreeMap<&Digest, Value> = layers.iter().map(|l| &l.diff_id).zip(blobs).collect();
    let config = store.blob(&image.id, DOCUMENT_CAP)?;
    if !out.repository.has_blob(&image.id)? {
        out.send_whole(&image.id, &config)?;
    }
    let (media_type, bytes) = out.manifest(&placed, config.len())?;
    let tag = to.tag().map_or_else(|| Digest::of(&bytes).to_string(), str::to_owned);
    let digest = out.repository.put_manifest(&tag, media_type, &bytes)?;
    remember(session, image, to, &digest, &bytes)?;
    Ok(Pushed { digest, size: bytes.len() as u64, media_type })
}

/// Records the image's name by digest and the pushed manifest in the store.
fn remember(session: &Session, image: &Image, to: &Reference, digest: &Digest, bytes: &[u8]) -> Result<()> {
    let mut parts = Intent { blobs: [digest.clone()].into(), ..Intent::default() };
    parts.extend(remove::parts_of(image));
    session.intend(&parts)?;
    let fresh = session.publish_blob(digest, bytes)?;
    let is_there = session.store().update_by(session, |_, catalog| {
        // The image may have been removed meanwhile.
        let is_there = catalog.get(&image.id).is_some();
        if is_there {
            catalog.add_origin(&image.id, digest);
            catalog.give_name(&image.id, &to.by_digest(digest));
        }
        Ok::<_, Error>(is_there)
    })?;
    if fresh && !is_there {
        let made = Intent { blobs: [digest.clone()].into(), ..Intent::default() };
        gc::take_back(session.store(), &made, FORMATS)?;
    }
    Ok(())
}

/// A known blob of a layer.
struct Known {
    /// Descriptor from a manifest, with all its fields.
    raw: Value,
    descriptor: Descriptor,
    /// Repositories of the same registry that may have the blob.
    repositories: Vec<String>,
}

/// Returns the known blobs of the image's layers, by DiffID, from all manifests in the store.
fn known(store: &Store, catalog: &Catalog, image: &Image, to: &Reference) -> BTreeMap<Digest, Vec<Known>> {
    let mut found: BTreeMap<Digest, Vec<Known>> = BTreeMap::new();
    let shares = |other: &&Image| other.layers.iter().any(|l| image.layers.iter().any(|own| own.diff_id == l.diff_id));
    // The image's own manifests come first.
    let others = catalog.images().iter().filter(|other| other.id != image.id).filter(shares);
    for other in std::iter::once(catalog.get(&image.id).unwrap_or(image)).chain(others) {
        let mut repositories: Vec<String> = Vec::new();
        for name in other.digests.iter().chain(&other.tags).filter(|n| n.domain() == to.domain()) {
            if name.path() != to.path() && !repositories.iter().any(|r| r == name.path()) {
                repositories.push(name.path().to_owned());
            }
        }
        for manifest in other.origins().filter_map(|digest| store.blob(digest, DOCUMENT_CAP).ok()) {
            let Some(descriptors) = manifest::layers_of(&manifest).filter(|l| l.len() == other.layers.len()) else {
                continue;
            };
            for (layer, (descriptor, raw)) in other.layers.iter().zip(descriptors) {
                let all = found.entry(layer.diff_id.clone()).or_default();
                match all.iter_mut().find(|k| k.descriptor.digest == descriptor.digest) {
                    Some(same) => same.repositories.extend(repositories.iter().cloned()),
                    None => all.push(Known { raw, descriptor, repositories: repositories.clone() }),
                }
            }
        }
    }
    found
}

/// A push of one image.
struct Out<'a> {
    store: &'a Store,
    image: &'a Image,
    to: &'a Reference,
    repository: Repository,
    known: BTreeMap<Digest, Vec<Known>>,
    packing: Packing,
    progress: &'a dyn Progress,
}

impl Out<'_> {
    /// Uploads the layer unless the repository has it; returns its descriptor.
    fn layer(&self, layer: &LayerRecord) -> Result<Value> {
        let known = self.known.get(&layer.diff_id).map(Vec::as_slice).unwrap_or_default();
        if let Some(foreign) = known.iter().find(|k| manifest::is_foreign(&k.descriptor.media_type)) {
            self.progress.layer(layer, Event::Foreign);
            return Ok(foreign.raw.clone());
        }
        let suits = |k: &&Known| match self.packing.compression {
            Some(how) => manifest::compression_of(&k.descriptor.media_type) == Some(how.name()),
            None => true,
        };
        let at = |error| self.at(layer, Problem::Registry(error));
        for blob in known.iter().filter(suits) {
            if self.repository.has_blob(&blob.descriptor.digest).map_err(at)? {
                self.progress.layer(layer, Event::Exists);
                return Ok(blob.raw.clone());
            }
        }
        let mut begun = None;
        for (blob, path) in
            known.iter().filter(suits).flat_map(|b| b.repositories.iter().map(move |r| (b, r))).take(GUESSES)
        {
            match self.repository.mount_or_upload(&blob.descriptor.digest, path) {
                Ok(UploadStart::Mounted) => {
                    self.progress.layer(layer, Event::Mounted(path.clone()));
                    return Ok(blob.raw.clone());
                }
                Ok(UploadStart::Upload(upload)) => begun = Some(upload),
                Err(error) if matches!(error.kind, Kind::Missing | Kind::WrongCredentials) => {
                    tracing::debug!(%error, "cannot mount a layer from another repository");
                }
                Err(error) => return Err(at(error)),
            }
        }
        let mut tries = 1;
        loop {
            match self.send(layer, begun.take()) {
                Err(Problem::Registry(error)) if error.kind == Kind::Lost && tries < TRIES => {
                    tracing::warn!("{error}; uploading the layer again from its beginning");
                    tries += 1;
                }
                done => {
                    let raw = done.map_err(|problem| self.at(layer, problem))?;
                    self.progress.layer(layer, Event::Pushed);
                    return Ok(raw);
                }
            }
        }
    }

    /// Compresses the layer and uploads it at the same time.
    fn send(&self, layer: &LayerRecord, begun: Option<Upload>) -> std::result::Result<Value, Problem> {
        let how = self.packing.compression.unwrap_or(Compression::Gzip);
        let level = self.packing.level.unwrap_or(how.levels().0);
        let path = self.store.layer_tar(&layer.diff_id);
        let file = File::open(&path).map_err(|e| Problem::read(path.display().to_string(), None, e))?;
        let checked = Verifier::new(BufReader::with_capacity(BUFFER, file), &layer.diff_id, layer.size);
        let tar = Told { inner: checked, layer, progress: self.progress, total: 0 };
        let upload = match begun {
            Some(upload) => upload,
            None => self.repository.upload().map_err(Problem::Registry)?,
        };
        let (full, chunks) = sync_channel(1);
        let (packed, sent) = thread::scope(|scope| {
            let packer = scope.spawn(move || deflate::pack(tar, how, level, Chunks { full, chunk: Vec::new() }));
            let mut sender = Sender { upload, hasher: Hasher::new(Algorithm::Sha256), size: 0, held: Vec::new() };
            // Dropping the receiver after a failure ends the compressing thread too.
            let sent = sender.take(chunks);
            let packed = packer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (packed, sent.map(|()| sender))
        });
        let sender = sent.map_err(Problem::Registry)?;
        // The upload is completed only if the whole tar had the right DiffID.
        packed.map_err(|e| Problem::read(path.display().to_string(), Some(&layer.diff_id), e))?;
        let size = sender.size;
        let digest = sender.finish().map_err(Problem::Registry)?;
        let media_type = manifest::layer_type(Family::Oci, how.name());
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": size }))
    }

    /// Uploads a small blob in one request.
    fn send_whole(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        Ok(self.repository.upload()?.finish(digest, bytes)?)
    }

    /// Returns the manifest to push: an original one if it names exactly the blobs in the registry, else a new one like
    /// it.
    fn manifest(&self, placed: &BTreeMap<&Digest, Value>, config_size: usize) -> Result<(&'static str, Vec<u8>)> {
        let layers: Vec<Value> = self.image.layers.iter().filter_map(|l| placed.get(&l.diff_id)).cloned().collect();
        let digest_of = |raw: &Value| raw.get("digest").cloned();
        for digest in self.image.origins() {
            // A missing manifest was set aside as damaged. A damaged one still in place is an error: no other may
            // replace it.
            if !self.store.blob_path(digest).exists() {
                continue;
            }
            let bytes = self.store.blob(digest, DOCUMENT_CAP)?;
            let Some(own) = manifest::layers_of(&bytes) else { continue };
            let same =
                own.len() == layers.len() && own.iter().zip(&layers).all(|((_, o), l)| digest_of(o) == digest_of(l));
            if same && let Some(family) = manifest::family_of(&bytes) {
                return Ok((family.manifest_type(), bytes));
            }
        }
        let origin = self.image.manifest.as_ref().and_then(|digest| self.store.blob(digest, DOCUMENT_CAP).ok());
        let any_zstd = layers.iter().any(|l| {
            let media_type = l.get("mediaType").and_then(Value::as_str).unwrap_or_default();
            manifest::compression_of(media_type) == Some(Compression::Zstd.name())
        });
        // Docker's media types have none for zstd.
        let family = match origin.as_deref().and_then(manifest::family_of) {
            Some(Family::Docker) if !any_zstd => Family::Docker,
            _ => Family::Oci,
        };
        let base: Option<Map<String, Value>> = origin.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut fields = base.unwrap_or_default();
        fields.insert("schemaVersion".into(), json!(2));
        fields.insert("mediaType".into(), json!(family.manifest_type()));
        let config = json!({ "mediaType": family.config_type(), "digest": self.image.id, "size": config_size });
        fields.insert("config".into(), config);
        let layers: Vec<Value> = layers.into_iter().map(|layer| in_family(layer, family)).collect();
        fields.insert("layers".into(), Value::Array(layers));
        let bytes = serde_json::to_vec(&fields).map_err(|e| Error::Usage(e.to_string()))?;
        Ok((family.manifest_type(), bytes))
    }

    fn at(&self, layer: &LayerRecord, problem: Problem) -> Error {
        let position = self.image.layers.iter().position(|l| l.diff_id == layer.diff_id).unwrap_or_default() + 1;
        if problem.is_content() || matches!(problem, Problem::Read { .. }) {
            let what = format!("layer {}: {problem}", layer.diff_id.short());
            return Error::Broken { image: self.image.title(), what };
        }
        Error::Layer {
            origin: self.to.familiar(),
            position,
            count: self.image.layers.len(),
            digest: layer.diff_id.short().to_owned(),
            problem: Box::new(problem),
        }
    }
}

/// Converts a descriptor's media type to the family's.
fn in_family(mut layer: Value, family: Family) -> Value {
    let kind = layer.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    if !manifest::is_foreign(kind)
        && let Some(how) = manifest::compression_of(kind)
    {
        layer["mediaType"] = json!(manifest::layer_type(family, how));
    }
    layer
}

/// A reader that reports the bytes read of a layer.
struct Told<'a, R> {
    inner: R,
    layer: &'a LayerRecord,
    progress: &'a dyn Progress,
    total: u64,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.total += n as u64;
        self.progress.layer(self.layer, Event::Sent(self.total));
        Ok(n)
    }
}

/// A writer that cuts a stream into chunks for another thread. Flushing passes the rest.
struct Chunks {
    full: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
}

impl Chunks {
    fn pass(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.full.send(chunk).map_err(|_| io::Error::other("the upload failed"))
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(CHUNK);
        }
        let n = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..n]);
        if self.chunk.len() == CHUNK {
            self.pass()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { self.pass() }
    }
}

/// The uploading side. It holds back one chunk, because the last one completes the upload.
struct Sender {
    upload: Upload,
    hasher: Hasher,
    size: u64,
    held: Vec<u8>,
}

impl Sender {
    fn take(&mut self, chunks: Receiver<Vec<u8>>) -> registry::Result<()> {
        for chunk in chunks {
            self.hasher.update(&chunk);
            self.size += chunk.len() as u64;
            let before = std::mem::replace(&mut self.held, chunk);
            if !before.is_empty() {
                self.upload.chunk(&before)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> registry::Result<Digest> {
        let digest = self.hasher.finish();
        self.upload.finish(&digest, &self.held)?;
        Ok(digest)
    }
}

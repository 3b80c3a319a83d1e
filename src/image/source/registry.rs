//! Source: repository of a registry, with resumed downloads and signature verification.

use super::{Blobs, LayerPlan, Place, Plan, Source, Want, oci};
use crate::digest::Digest;
use crate::image::manifest::{self, DOCUMENT_CAP, Descriptor};
use crate::image::verify::{Key, verify};
use crate::image::{Error, Problem, Result};
use crate::reference::Reference;
use crate::registry::{self, Blob, Manifest, Notice, Repository, Settings};
use crate::store::{self, Partial, Store};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Smallest blob that is kept as a partial, in bytes; fetching a smaller one again is cheaper.
const WORTH_KEEPING: u64 = 1 << 20;

/// The images of one repository.
struct Registry {
    origin: String,
    reference: Reference,
    repository: Repository,
    /// Key whose signature an image must have.
    key: Option<Key>,
    store: Store,
    /// Documents of tags, by digest.
    roots: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// Partials of the blobs being fetched, and whether each was begun by an earlier pull. Their locks are held until
    /// the layers are in the store, so that no other process fetches the same blobs.
    kept: Mutex<BTreeMap<Digest, Kept>>,
    cancelled: AtomicBool,
}

/// The partial of a blob.
struct Kept {
    partial: Arc<Mutex<Partial>>,
    resumed: bool,
}

/// A layer's stream: first an earlier pull's partial, then the rest from the registry, appended to the partial.
struct Resumed {
    partial: Arc<Mutex<Partial>>,
    /// Length of the partial.
    length: u64,
    /// Bytes of the partial still to be returned.
    left: u64,
    /// Whether received bytes are appended to the partial.
    keep: bool,
    rest: Option<Blob>,
    /// Error of the request for the rest.
    failed: Option<registry::Error>,
    repository: Repository,
    blob: Descriptor,
}

/// Opens the reference's repository. Sends nothing to the registry yet. Documents in the store are not fetched. With a
/// key, images without its signature are errors.
pub fn open_registry(reference: &Reference, settings: &Settings, key: Option<Key>, store: &Store) -> Box<dyn Source> {
    Box::new(Registry {
        origin: reference.familiar(),
        reference: reference.clone(),
        repository: Repository::new(reference, settings),
        key,
        store: store.clone(),
        roots: Mutex::default(),
        kept: Mutex::default(),
        cancelled: AtomicBool::new(false),
    })
}

impl Registry {
    /// Plans the image under a tag or digest.
    fn plan(&self, name: &Reference, want: &Want) -> Result<Plan> {
        let wrap = |problem| match problem {
            Problem::Registry(error) => Error::Registry(error),
            problem => Error::Source { origin: name.familiar(), problem: Box::new(problem) },
        };
        let asked = match (name.digest(), name.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        let kept = name.digest().and_then(|digest| self.document(digest)).and_then(|bytes| {
            let media_type = manifest::own_media_type(&bytes)?;
            Some(Manifest { digest: name.digest()?.clone(), media_type, bytes })
        });
        let root = match kept {
            Some(kept) => kept,
            None => self.repository.manifest(&asked, &manifest::accept(), DOCUMENT_CAP)?,
        };
        if let Some(key) = &self.key {
            verify(&self.repository, key, &root.digest, &name.familiar())?;
        }
        // Some registries send manifests as application/json; then the document's own mediaType counts.
        let known = manifest::is_manifest(&root.media_type);
        let descriptor = Descriptor {
            media_type: if known { root.media_type } else { String::new() },
            digest: root.digest,
            size: root.bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let mut roots = self.roots.lock();
        roots.insert(descriptor.digest.clone(), root.bytes);
        drop(roots);
        let plan = oci::plan(self, &descriptor, want).map_err(wrap)?;
        let by_digest = name.by_digest(&descriptor.digest);
        let names = if name.digest().is_some() { vec![by_digest] } else { vec![name.clone(), by_digest] };
        Ok(Plan { names, ..plan })
    }

    /// Opens the blob's stream at the end of an earlier pull's partial. Waits while another process fetches the blob;
    /// sends no request before the first byte from the registry is read.
    fn resume(&self, blob: &Descriptor, waits: Notice) -> std::result::Result<Resumed, Problem> {
        let give_up = || self.cancelled.load(Ordering::Relaxed);
        let wrap = |e: store::Error| Problem::Document(e.to_string());
        let mut partial = Partial::open(&self.store, &blob.digest, &give_up).map_err(wrap)?.ok_or(Problem::Stopped)?;
        if partial.length() > blob.size {
            let path = self.store.partial_path(&blob.digest);
            partial.clear().map_err(|cause| Problem::Write { path, cause })?;
        }
        let length = partial.length();
        if length > 0 {
            tracing::info!(digest = %blob.digest, have = length, of = blob.size, "resuming a download");
        }
        let partial = Arc::new(Mutex::new(partial));
        let kept = Kept { partial: Arc::clone(&partial), resumed: length > 0 };
        self.kept.lock().insert(blob.digest.clone(), kept);
        Ok(Resumed {
            left: length,
            length,
            partial,
            keep: self.keeps(blob),
            rest: None,
            failed: None,
            repository: self.repository.watched(waits),
            blob: blob.clone(),
        })
    }

    /// Discards the partial of a layer's blob. Returns whether an earlier pull had begun it.
    fn forget(&self, layer: &LayerPlan) -> bool {
        let Place::Blob(blob) = &layer.place else { return false };
        let kept = self.kept.lock().remove(&blob.digest);
        match kept {
            Some(kept) => {
                kept.partial.lock().remove();
                kept.resumed
            }
            // A pull that was killed right after it published the layer may have left its partial.
            None => {
                self.store.forget_partial(&blob.digest);
                false
            }
        }
    }

    /// Returns the document if the store has it undamaged.
    fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.store.blob(digest, DOCUMENT_CAP).ok()
    }
}

/// Whether a tag is not an image's but that of an attachment: cosign's signatures, attestations and SBOMs, and
/// referrers lists.
fn is_attachment(tag: &str) -> bool {
    let Some(rest) = tag.strip_prefix("sha256-") else { return false };
    let hex = ["", ".sig", ".att", ".sbom"].iter().filter_map(|ending| rest.strip_suffix(ending));
    hex.into_iter().any(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl Read for Resumed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut partial = self.partial.lock();
        if self.left > 0 {
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
            let n = partial.read(&mut buf[..most])?;
            self.left -= n as u64;
            if n == 0 && most > 0 {
                return Err(io::Error::other("a partial download shrank while it was read"));
            }
            return Ok(n);
        }
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        let rest = match &mut self.rest {
            Some(rest) => rest,
            none => match self.repository.blob(&self.blob.digest, self.blob.size, self.length) {
                Ok(rest) => none.insert(rest),
                Err(error) => {
                    self.failed = Some(error.clone());
                    return Err(io::Error::other(error));
                }
            },
        };
        let n = rest.read(buf)?;
        // An error of writing the partial does not stop the download.
        self.keep = self.keep && partial.append(&buf[..n]).is_ok();
        Ok(n)
    }
}

impl Blobs for Registry {
    fn blob(&self, descriptor: &Descriptor) -> std::result::Result<Box<dyn Read + Send>, Problem> {
        let digest = &descriptor.digest;
        let root = self.roots.lock().get(digest).cloned();
        if let Some(bytes) = root.or_else(|| self.document(digest)) {
            return Ok(Box::new(Cursor::new(bytes)));
        }
        if manifest::is_manifest(&descriptor.media_type) {
            let found = self.repository.manifest(&digest.to_string(), &manifest::accept(), DOCUMENT_CAP);
            return Ok(Box::new(Cursor::new(found.map_err(Problem::Registry)?.bytes)));
        }
        Ok(Box::new(Cursor::new(self.repository.small_blob(digest, descriptor.size).map_err(Problem::Registry)?)))
    }
}

impl Source for Registry {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn images(&self, want: &Want) -> Result<Vec<Plan>> {
        if !want.all {
            return Ok(vec![self.plan(&self.reference.clone().or_latest(), want)?]);
        }
        let mut plans = Vec::new();
        for tag in self.repository.tags()?.into_iter().filter(|tag| !is_attachment(tag)) {
            let tagged = self.reference.by_tag(&tag).map_err(|_| {
                let why = format!("its list of tags has the invalid tag `{}`", tag.escape_debug());
                Error::Source { origin: self.origin.clone(), problem: Box::new(Problem::Document(why)) }
            })?;
            plans.push(self.plan(&tagged, want)?);
        }
        if plans.is_empty() {
            let problem = Box::new(Problem::Document("the repository has no tags".into()));
            return Err(Error::Source { origin: self.origin.clone(), problem });
        }
        Ok(plans)
    }

    fn layer(&self, layer: &LayerPlan, waits: Notice) -> std::result::Result<Box<dyn Read + Send>, Problem> {
        match &layer.place {
            Place::Blob(blob) => Ok(Box::new(self.resume(blob, waits)?)),
            Place::Member(name, _) => Err(Problem::Document(format!("has no layer {name}"))),
        }
    }

    fn keeps(&self, blob: &Descriptor) -> bool {
        blob.size > WORTH_KEEPING
    }

    fn taken(&self, layer: &LayerPlan) {
        self.forget(layer);
    }

    fn discard(&self, layer: &LayerPlan, wrong: &Problem) -> bool {
        let Place::Blob(blob) = &layer.place else { return false };
        let resumed = self.forget(layer);
        if resumed {
            tracing::info!(layer = layer.short(), %wrong, "discarding the partial download of an earlier pull");
        }
        // Whether the partial or the mirror was wrong is unknown.
        self.repository.distrust(&blob.digest, wrong) || resumed
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.repository.cancel();
    }
}

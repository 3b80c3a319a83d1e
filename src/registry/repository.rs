//! A repository of a registry: manifests, blobs, tags and referrers, read from mirrors or the registry itself.

use super::client::{Ask, Client, ask_below};
use super::http::{self, Method, header};
use super::mirrors::{self, Places};
use super::pagination;
use super::{Error, Kind, Notice, Result, Settings};
use crate::digest::{Digest, Hasher};
use crate::reference::Reference;
use parking_lot::{Mutex, MutexGuard};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const PAGE_CAP: u64 = 4 << 20;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A manifest or image index as fetched, with its digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Media type that the registry states; empty if it states none.
    pub media_type: String,
    /// The exact bytes.
    pub bytes: Vec<u8>,
}

/// A referrer: an artifact whose manifest names another one as its `subject`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Digest of the referrer's manifest.
    pub digest: Digest,
    /// Artifact type.
    #[serde(default)]
    pub artifact_type: String,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A repository of a registry, with its mirrors. Clones share connections, authorization and cancellation.
///
/// Reads try the mirrors in order and the registry itself last; a mirror that fails is reported in a warning.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
    notice: Option<Notice>,
}

struct Inner {
    mirrors: Vec<Mirror>,
    /// Client of the registry itself.
    own: Client,
    blobs: Mutex<Blobs>,
}

struct Mirror {
    client: Client,
    /// Whether the mirror failed in a way that excludes it from further requests.
    is_gone: AtomicBool,
}

/// Indexes of mirrors, per blob.
#[derive(Default)]
struct Blobs {
    came_from: BTreeMap<Digest, BTreeSet<usize>>,
    distrusted: BTreeMap<Digest, BTreeSet<usize>>,
}

impl Repository {
    /// The repository of the reference, for reading. Sends nothing yet.
    pub fn new(reference: &Reference, settings: &Settings) -> Repository {
        match mirrors::find(&settings.mirrors, reference) {
            Ok(Places { mirrors, own }) => {
                let mirror = |place: &mirrors::Place| Mirror {
                    client: Client::mirror(&place.domain, &place.path, &settings.for_place(place.insecure)),
                    is_gone: AtomicBool::new(false),
                };
                let own_client = Client::new(&own.domain, &own.path, "pull", &settings.for_place(own.insecure));
                Repository::with(mirrors.iter().map(mirror).collect(), own_client)
            }
            Err(why) => Repository::refused(reference, settings, why),
        }
    }

    /// The repository of the reference, for reading and writing at the registry itself, without mirrors. Sends nothing
    /// yet.
    pub fn to_write(reference: &Reference, settings: &Settings) -> Repository {
        match mirrors::find(&settings.mirrors, reference) {
            Ok(Places { own, .. }) => {
                // `insecure` of a rewritten location does not hold for the registry itself.
                let insecure = own.insecure && own.domain == reference.domain();
                let settings = settings.for_place(insecure);
                let client = Client::new(reference.domain(), reference.path(), "pull,push", &settings);
                Repository::with(Vec::new(), client)
            }
            Err(why) => Repository::refused(reference, settings, why),
        }
    }

    fn refused(reference: &Reference, settings: &Settings, why: String) -> Repository {
        let own = Client::closed(reference.domain(), reference.path(), settings, why);
        Repository::with(Vec::new(), own)
    }

    fn with(mirrors: Vec<Mirror>, own: Client) -> Repository {
        Repository { inner: Arc::new(Inner { mirrors, own, blobs: Mutex::default() }), notice: None }
    }

    /// Returns a clone that calls `notice` before a failed blob request is repeated after a pause.
    pub fn watched(&self, notice: Notice) -> Repository {
        Repository { notice: Some(notice), ..self.clone() }
    }

    /// Registry domain as users write it.
    pub fn host(&self) -> &str {
        self.inner.own.host()
    }

    /// Cancels every wait for another try, current and future.
    pub fn cancel(&self) {
        self.inner.mirrors.iter().for_each(|mirror| mirror.client.cancel());
        self.inner.own.cancel();
    }

    /// Fetches the manifest or index under a tag or digest: at most `cap` bytes, of a type in `accept`. The bytes are
    /// verified against a digest.
    pub fn manifest(&self, name: &str, accept: &str, cap: u64) -> Result<Manifest> {
        for (at, mirror) in self.inner.mirrors.iter().enumerate() {
            if mirror.is_gone.load(Ordering::Relaxed) {
                continue;
            }
            match manifest(&mirror.client, name, accept, cap).and_then(|found| check_json(&mirror.client, name, found))
            {
                Err(error) if self.passes_over(at, &error) => {}
                done => return done,
            }
        }
        manifest(&self.inner.own, name, accept, cap)
    }

    /// Fetches a small blob into memory and verifies its digest.
    pub fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        loop {
            let mut blob = self.blob(digest, size, 0)?;
            let (mut bytes, mut hasher) = (Vec::new(), Hasher::new(digest.algorithm()));
            if let Err(e) = (&mut blob).take(size + 1).read_to_end(&mut bytes) {
                return Err(e.downcast::<Error>().unwrap_or_else(|e| blob.error(Kind::Failed, e.to_string())));
            }
            hasher.update(&bytes);
            let got = hasher.finish();
            if got == *digest && bytes.len() as u64 == size {
                return Ok(bytes);
            }
            let why = format!("it has digest {got} and {} bytes instead of {size}", bytes.len());
            if !self.distrust(digest, &why) {
                return Err(blob.error(Kind::Protocol, why));
            }
        }
    }

    /// Reports that the bytes read did not match the blob's digest: excludes the mirrors that served it. Returns
    /// whether there were any.
    pub fn distrust(&self, digest: &Digest, why: &dyn Display) -> bool {
        let mut blobs = self.blobs();
        let came_from = blobs.came_from.remove(digest).unwrap_or_default();
        for at in &came_from {
            let host = self.inner.mirrors[*at].client.host();
            tracing::warn!("mirror {host}: blob {digest}: {why}; trying the next host");
        }
        let any = !came_from.is_empty();
        blobs.distrusted.entry(digest.clone()).or_default().extend(came_from);
        any
    }

    /// Lists all tags of the registry itself, in its order.
    pub fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let ask = self.ask(Method::Get, "list of tags".into(), "tags/list");
        let mut all: Vec<String> = Vec::new();
        pagination::each(&self.inner.own, ask, |page: Page| {
            all.extend(page.tags.unwrap_or_default());
            true
        })?;
        Ok(all)
    }

    /// Lists the referrers of a manifest or index, of this artifact type; of any type if the registry cannot filter. An
    /// empty list from a mirror does not end the search.
    pub fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Vec<Referrer>> {
        for (at, mirror) in self.inner.mirrors.iter().enumerate() {
            if mirror.is_gone.load(Ordering::Relaxed) {
                continue;
            }
            match referrers(&mirror.client, digest, artifact_type) {
                Ok(none) if none.is_empty() => {}
                Err(error) if self.passes_over(at, &error) => {}
                done => return done,
            }
        }
        referrers(&self.inner.own, digest, artifact_type)
    }

    /// Makes a request below the repository's own path.
    pub(super) fn ask(&self, method: Method, what: String, below: &str) -> Ask {
        ask_below(&self.inner.own, method, what, below)
    }

    /// Client of the registry itself.
    pub(super) fn client(&self) -> &Client {
        &self.inner.own
    }

    /// Returns the first place at or after index `from` that may serve the blob. The registry itself follows the
    /// mirrors.
    pub(super) fn place_for(&self, digest: &Digest, from: usize) -> (usize, Client) {
        let blobs = self.blobs();
        let distrusted = |at: &usize| blobs.distrusted.get(digest).is_some_and(|all| all.contains(at));
        let mirrors = self.inner.mirrors.iter().enumerate().skip(from);
        let mut fit = mirrors.filter(|(at, m)| !m.is_gone.load(Ordering::Relaxed) && !distrusted(at));
        let found = fit.next().map_or((self.inner.mirrors.len(), &self.inner.own), |(at, mirror)| (at, &mirror.client));
        (found.0, found.1.watched(self.notice.clone()))
    }

    /// Records that a place served bytes of the blob.
    pub(super) fn came_from(&self, digest: &Digest, place: usize) {
        if place < self.inner.mirrors.len() {
            self.blobs().came_from.entry(digest.clone()).or_default().insert(place);
        }
    }

    /// Whether the place is a mirror; then logs the error as a warning.
    pub(super) fn passes_over(&self, place: usize, error: &Error) -> bool {
        let Some(mirror) = self.inner.mirrors.get(place).filter(|_| error.kind != Kind::Cancelled) else {
            return false;
        };
        if error.kind != Kind::Missing {
            mirror.is_gone.store(true, Ordering::Relaxed);
        }
        tracing::warn!("mirror {error}; trying the next host");
        true
    }

    fn blobs(&self) -> MutexGuard<'_, Blobs> {
        self.inner.blobs.lock()
    }
}

impl Settings {
    fn for_place(&self, insecure: bool) -> Settings {
        Settings { tls_verify: self.tls_verify && !insecure, ..self.clone() }
    }
}

fn manifest_ask(client: &Client, name: &str) -> Ask {
    ask_below(client, Method::Get, format!("manifest {name}"), &format!("manifests/{name}"))
}

fn manifest(client: &Client, name: &str, accept: &str, cap: u64) -> Result<Manifest> {
    let ask = manifest_ask(client, name).header("Accept", accept);
    let (said, media_type, bytes) = client.ask_for(&ask, |response| {
        let said = header(&response, "docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        let media_type = header(&response, "content-type").and_then(|t| t.split(';').next()).unwrap_or_default();
        let media_type = media_type.trim().to_ascii_lowercase();
        Ok((said, media_type, http::small_body(response, cap)?))
    })?;
    let asked: Option<Digest> = name.parse().ok();
    let mut digest = Digest::of(&bytes);
    for want in asked.iter().chain(&said) {
        let mut hasher = Hasher::new(want.algorithm());
        hasher.update(&bytes);
        let got = hasher.finish();
        if got != *want {
            let whose = if asked.is_some() { "asked for" } else { "named in its Docker-Content-Digest" };
            let why = format!("it has digest {got} instead of {want} as {whose}");
            return Err(ask.error(client, Kind::Protocol, why));
        }
    }
    digest = asked.unwrap_or(digest);
    Ok(Manifest { digest, media_type, bytes })
}

/// Rejects a body that is not JSON, as proxies and captive portals send.
fn check_json(client: &Client, name: &str, found: Manifest) -> Result<Manifest> {
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&found.bytes);
    json.map_err(|e| manifest_ask(client, name).error(client, Kind::Protocol, format!("not valid JSON: {e}")))?;
    Ok(found)
}

fn referrers(client: &Client, digest: &Digest, artifact_type: &str) -> Result<Vec<Referrer>> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Referrer>,
    }
    let below = format!("referrers/{digest}?artifactType={}", utf8_percent_encode(artifact_type, NON_ALPHANUMERIC));
    let ask = ask_below(client, Method::Get, format!("referrers of {digest}"), &below).header("Accept", INDEX);
    let mut all = Vec::new();
    let read = pagination::each(client, ask, |page: Index| {
        all.extend(page.manifests);
        true
    });
    match read {
        Err(error) if error.kind == Kind::Missing => {}
        done => return done.map(|()| all),
    }
    // Fallback of the distribution specification: the referrers tag schema, an index under the tag `ALGORITHM-HEX`.
    let tag = format!("{}-{}", digest.algorithm().name(), digest.hex());
    match manifest(client, &tag, INDEX, PAGE_CAP) {
        Ok(found) => {
            let index: Index = serde_json::from_slice(&found.bytes).map_err(|e| {
                let why = format!("not an index of referrers: {e}");
                manifest_ask(client, &tag).error(client, Kind::Protocol, why)
            })?;
            Ok(index.manifests)
        }
        Err(error) if error.kind == Kind::Missing => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

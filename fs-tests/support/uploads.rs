//! An in-memory registry to push to, strict about the distribution specification's rules for uploads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::oci::digest;
use super::registry::{Reply, Request, Server};

/// The uploaded content, by repository and name.
#[derive(Default)]
pub struct RegistryContent {
    /// Blobs by `REPO DIGEST`.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Manifests with their types, by `REPO NAME`, by tag and by digest.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// Unfinished uploads, by number.
    pub uploads: BTreeMap<usize, Vec<u8>>,
    begun: usize,
}

/// A server with its uploaded content.
pub struct UploadRegistry {
    /// The server.
    pub server: Server,
    /// The uploaded content.
    pub content: Arc<Mutex<RegistryContent>>,
}

impl UploadRegistry {
    /// Starts a registry. It calls `intercept` with each request and the content first, which may respond or change the
    /// content.
    pub fn start(intercept: impl Fn(&Request, &mut RegistryContent) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let content = Arc::new(Mutex::new(RegistryContent::default()));
        let own = content.clone();
        let server = Server::start(move |request| {
            let mut content = own.lock().unwrap();
            intercept(request, &mut content).unwrap_or_else(|| content.answer(request))
        });
        Self { server, content }
    }

    /// Starts a well-behaved registry.
    pub fn new() -> Self {
        Self::start(|_, _| None)
    }
}

impl RegistryContent {
    /// The response of a well-behaved registry.
    pub fn answer(&mut self, request: &Request) -> Reply {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let Some(below) = path.strip_prefix("/v2/") else { return Reply::new(404) };
        let query = |name: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            pair.map(|value| value.replace("%3A", ":").replace("%2F", "/").replace("%2D", "-"))
        };
        if let Some((repo, id)) = below.split_once("/blobs/uploads/") {
            return match (request.method.as_str(), id.parse::<usize>()) {
                ("POST", Err(_)) => self.begin(repo, query("mount"), query("from")),
                (_, Ok(id)) if self.uploads.contains_key(&id) => self.upload(request, repo, id, query("digest")),
                _ => Reply::new(404),
            };
        }
        if let Some((repo, name)) = below.split_once("/blobs/") {
            let found = self.blobs.get(&format!("{repo} {name}"));
            let head = request.method == "HEAD";
            return found.map_or(Reply::new(404), |b| Reply::new(200).body(if head { vec![] } else { b.clone() }));
        }
        let Some((repo, name)) = below.split_once("/manifests/") else { return Reply::new(404) };
        if request.method == "PUT" {
            return self.put_manifest(request, repo, name);
        }
        match self.manifests.get(&format!("{repo} {name}")) {
            Some((kind, bytes)) => Reply::new(200).header("Content-Type", kind).body(bytes.clone()),
            None => Reply::new(404),
        }
    }

    fn begin(&mut self, repo: &str, mount: Option<String>, from: Option<String>) -> Reply {
        if let (Some(digest), Some(from)) = (mount, from)
            && let Some(blob) = self.blobs.get(&format!("{from} {digest}")).cloned()
        {
            self.blobs.insert(format!("{repo} {digest}"), blob);
            return Reply::new(201).header("Location", format!("/v2/{repo}/blobs/{digest}"));
        }
        self.begun += 1;
        self.uploads.insert(self.begun, vec![]);
        Reply::new(202).header("Location", format!("/v2/{repo}/blobs/uploads/{}?state=0", self.begun))
    }

    fn upload(&mut self, request: &Request, repo: &str, id: usize, end: Option<String>) -> Reply {
        let so_far = self.uploads.get_mut(&id).unwrap();
        let place = |have: usize| format!("/v2/{repo}/blobs/uploads/{id}?state={have}");
        let range = |have: usize| format!("0-{}", have.saturating_sub(1));
        match request.method.as_str() {
            "GET" => {
                let have = so_far.len();
                Reply::new(204).header("Location", place(have)).header("Range", range(have))
            }
            "PATCH" => {
                let first = request.header("content-range").split('-').next().and_then(|n| n.parse().ok());
                if first != Some(so_far.len()) || !request.path.ends_with(&format!("state={}", so_far.len())) {
                    return Reply::new(416);
                }
                so_far.extend_from_slice(&request.bytes);
                let have = so_far.len();
                Reply::new(202).header("Location", place(have)).header("Range", range(have))
            }
            "PUT" => {
                so_far.extend_from_slice(&request.bytes);
                let blob = self.uploads.remove(&id).unwrap();
                let wanted = end.unwrap_or_default();
                if digest(&blob) != wanted {
                    return Reply::new(400).body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"other bytes"}]}"#);
                }
                self.blobs.insert(format!("{repo} {wanted}"), blob);
                Reply::new(201).header("Docker-Content-Digest", wanted)
            }
            _ => Reply::new(405),
        }
    }

    fn put_manifest(&mut self, request: &Request, repo: &str, name: &str) -> Reply {
        let parsed: serde_json::Value = serde_json::from_slice(&request.bytes).unwrap();
        let layers = parsed["layers"].as_array().unwrap().iter().chain([&parsed["config"]]);
        for wanted in layers.map(|d| d["digest"].as_str().unwrap()) {
            if !self.blobs.contains_key(&format!("{repo} {wanted}")) {
                return Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}"#);
            }
        }
        let digest = digest(&request.bytes);
        for name in [name, &digest] {
            let kind = request.header("content-type").to_owned();
            self.manifests.insert(format!("{repo} {name}"), (kind, request.bytes.clone()));
        }
        Reply::new(201).header("Docker-Content-Digest", digest)
    }
}

//! One repository: its manifests, blobs and tags.

use super::blob::Blob;
use super::client::{Ask, Client};
use super::http::{self, Method, header};
use super::{Kind, Result, Settings};
use crate::digest::{Digest, Hasher};
use crate::reference::Reference;
use serde::Deserialize;

const TAGS_CAP: u64 = 4 << 20;
const PAGES: usize = 1000;

/// A manifest or index as a registry has it, hashed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// What it hashes to.
    pub digest: Digest,
    /// What the registry says it is; empty if it does not say.
    pub media_type: String,
    /// Its bytes, exactly.
    pub bytes: Vec<u8>,
}

/// A repository of a registry. Clones share connections, proofs and the cancellation.
#[derive(Clone)]
pub struct Repository {
    client: Client,
}

impl Repository {
    /// The repository that the reference names, to be read. Asks nothing yet.
    pub fn new(reference: &Reference, settings: &Settings) -> Repository {
        Repository { client: Client::new(reference.domain(), reference.path(), "pull", settings) }
    }

    /// The repository that the reference names, to be read and written. Asks nothing yet.
    pub fn to_write(reference: &Reference, settings: &Settings) -> Repository {
        Repository { client: Client::new(reference.domain(), reference.path(), "pull,push", settings) }
    }

    /// The registry as users call it.
    pub fn host(&self) -> &str {
        self.client.host()
    }

    /// Ends every wait for another try, now and later.
    pub fn cancel(&self) {
        self.client.cancel();
    }

    /// The manifest or index under a tag or a digest, of at most `cap` bytes and one of the types in `accept`. By digest,
    /// its bytes have that digest.
    pub fn manifest(&self, name: &str, accept: &str, cap: u64) -> Result<Manifest> {
        let ask = self.ask(Method::Get, format!("manifest {name}"), &format!("manifests/{name}"));
        let ask = ask.header("Accept", accept);
        let (said, media_type, bytes) = self.client.ask_for(&ask, |response| {
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
                return Err(ask.error(&self.client, Kind::Protocol, why));
            }
        }
        digest = asked.unwrap_or(digest);
        Ok(Manifest { digest, media_type, bytes })
    }

    /// A blob's stream from byte `at` on, unchecked.
    pub fn blob(&self, digest: &Digest, size: u64, at: u64) -> Result<Blob> {
        Blob::open(self, digest, size, at)
    }

    /// All tags, in the registry's order.
    pub fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut ask = self.ask(Method::Get, "list of tags".into(), "tags/list");
        let mut all: Vec<String> = Vec::new();
        for _ in 0..PAGES {
            let (next, bytes) = self.client.ask_for(&ask, |response| {
                let next = header(&response, "link").and_then(next_link).map(str::to_owned);
                Ok((next, http::small_body(response, TAGS_CAP)?))
            })?;
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|e| ask.error(&self.client, Kind::Protocol, format!("not a list of tags: {e}")))?;
            all.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { return Ok(all) };
            let place = self.client.place(&ask, &next)?;
            if !self.client.is_own(&ask, &place)? {
                let why = format!("the list goes on at another place: {}", next.escape_debug());
                return Err(ask.error(&self.client, Kind::Protocol, why));
            }
            ask = ask.at(place);
        }
        Err(ask.error(&self.client, Kind::Protocol, format!("the list has more than {PAGES} pages")))
    }

    /// A request below the repository's own path.
    pub(super) fn ask(&self, method: Method, what: String, below: &str) -> Ask {
        Ask::new(method, what, format!("/v2/{}/{below}", self.client.path()))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

/// The `next` of a `Link` header.
fn next_link(header: &str) -> Option<&str> {
    let (_, rest) = header.split_once('<')?;
    let (target, parameters) = rest.split_once('>')?;
    let is_next = |p: &str| matches!(p.trim().to_ascii_lowercase().as_str(), "rel=next" | "rel=\"next\"");
    let this = parameters.split(',').next().unwrap_or_default();
    if this.split(';').any(is_next) {
        return Some(target);
    }
    next_link(parameters.split_once(',')?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        assert_eq!(next_link("</v2/a/tags/list?last=b&n=2>; rel=\"next\""), Some("/v2/a/tags/list?last=b&n=2"));
        assert_eq!(next_link("<a>; rel=prev, <b>; title=x; rel=next"), Some("b"));
        for none in ["", "<a>", "<a>; rel=prev", "a; rel=next", "<a"] {
            assert_eq!(next_link(none), None, "{none}");
        }
    }
}

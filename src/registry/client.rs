//! One repository: asking, proving who asks, trying again, following redirects.

use super::auth::{self, Proof, Refusal};
use super::blob::Blob;
use super::credentials::{self, Found, HUB, Login};
use super::http::{self, Fault, Http, Request, Response, header};
use super::url::{Url, is_loopback};
use super::{Error, Kind, Result, Settings, Timing};
use crate::digest::{Digest, Hasher};
use crate::reference::Reference;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Where Docker's registry really is.
const HUB_SERVER: &str = "registry-1.docker.io";
const TRIES: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const HOPS: usize = 10;
const ERROR_CAP: u64 = 1 << 20;
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
    inner: Arc<Inner>,
}

struct Inner {
    http: Http,
    /// The registry as users call it.
    domain: String,
    path: String,
    verify: bool,
    timing: Timing,
    sources: credentials::Sources,
    base: OnceLock<std::result::Result<Url, String>>,
    login: OnceLock<std::result::Result<Option<Found>, String>>,
    signed: Mutex<Signed>,
    /// Whether there has been any answer yet.
    reached: AtomicBool,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct Signed {
    proof: Option<Proof>,
    scopes: BTreeMap<String, BTreeSet<String>>,
}

/// Something to ask for.
pub(super) struct Ask {
    /// In words.
    what: String,
    /// The path of its URL, with the query.
    path: String,
    accept: Option<String>,
}

impl Ask {
    /// An error about it.
    pub fn error(&self, repository: &Repository, kind: Kind, why: impl Into<String>) -> Error {
        let inner = &repository.inner;
        Error { host: inner.domain.clone(), asked: format!("{} of {}", self.what, inner.path), kind, why: why.into() }
    }
}

/// How one try failed.
enum Attempt {
    Final(Error),
    Again(Error, Option<Duration>),
}

/// The pauses between tries.
pub(super) struct Pauses {
    left: u32,
    next: Duration,
}

impl Pauses {
    /// Waits before another try, at least as long as the server wants; or returns the error when there were enough.
    pub fn wait(&mut self, repository: &Repository, error: Error, wanted: Option<Duration>) -> Result<()> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(Error { why: format!("{} ({TRIES} tries)", error.why), ..error });
        }
        let pause = wanted.unwrap_or_default().max(self.next).min(LONGEST_PAUSE);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        tracing::warn!("{error}; trying again in {:.1} seconds", pause.as_secs_f64());
        let until = Instant::now() + pause;
        while !repository.inner.cancelled.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        Err(Error { kind: Kind::Cancelled, why: "stopped while waiting to try again".into(), ..error })
    }
}

impl Repository {
    /// The repository that the reference names. Asks nothing yet.
    pub fn new(reference: &Reference, settings: &Settings) -> Repository {
        let domain = reference.domain().to_owned();
        let inner = Inner {
            http: Http::new(settings, &domain),
            domain,
            path: reference.path().to_owned(),
            verify: settings.tls_verify,
            timing: settings.timing,
            sources: settings.credentials.clone(),
            base: OnceLock::new(),
            login: OnceLock::new(),
            signed: Mutex::default(),
            reached: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        };
        Repository { inner: Arc::new(inner) }
    }

    /// The registry as users call it.
    pub fn host(&self) -> &str {
        &self.inner.domain
    }

    /// Ends every wait for another try, now and later.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Relaxed);
    }

    /// The manifest or index under a tag or a digest, of at most `cap` bytes and one of the types in `accept`. By digest,
    /// its bytes have that digest.
    pub fn manifest(&self, name: &str, accept: &str, cap: u64) -> Result<Manifest> {
        let mut ask = self.ask(format!("manifest {name}"), &format!("manifests/{name}"));
        ask.accept = Some(accept.to_owned());
        let (said, media_type, bytes) = self.ask_for(&ask, None, |response| {
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
                return Err(ask.error(self, Kind::Protocol, why));
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
        let mut ask = self.ask("list of tags".into(), "tags/list");
        let mut all: Vec<String> = Vec::new();
        for _ in 0..PAGES {
            let (next, bytes) = self.ask_for(&ask, None, |response| {
                let next = header(&response, "link").and_then(next_link).map(str::to_owned);
                Ok((next, http::small_body(response, TAGS_CAP)?))
            })?;
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|e| ask.error(self, Kind::Protocol, format!("not a list of tags: {e}")))?;
            all.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { return Ok(all) };
            let base = self.base(&ask)?;
            let here = Url { path: ask.path.clone(), ..base.clone() };
            match here.join(&next).filter(|url| url.same_origin(base)) {
                Some(url) => ask.path = url.path,
                None => {
                    let why = format!("the list goes on at another place: {}", next.escape_debug());
                    return Err(ask.error(self, Kind::Protocol, why));
                }
            }
        }
        Err(ask.error(self, Kind::Protocol, format!("the list has more than {PAGES} pages")))
    }

    /// A request below the repository's own path.
    pub(super) fn ask(&self, what: String, below: &str) -> Ask {
        Ask { what, path: format!("/v2/{}/{below}", self.inner.path), accept: None }
    }

    pub(super) fn pauses(&self) -> Pauses {
        Pauses { left: TRIES, next: self.inner.timing.pause }
    }

    /// Asks until there is an answer that is no error and `read` has taken from it what it wants. With a range, 416 is
    /// an answer too.
    pub(super) fn ask_for<T>(
        &self,
        ask: &Ask,
        range: Option<&str>,
        read: impl Fn(Response) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let mut pauses = self.pauses();
        loop {
            let done = self.try_once(ask, range).and_then(|r| read(r).map_err(|fault| self.failed(ask, fault)));
            match done {
                Ok(value) => return Ok(value),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error, wanted)) => pauses.wait(self, error, wanted)?,
            }
        }
    }

    fn try_once(&self, ask: &Ask, range: Option<&str>) -> std::result::Result<Response, Attempt> {
        let refuse = |kind, why: String| Attempt::Final(ask.error(self, kind, why));
        let base = self.base(ask).map_err(Attempt::Final)?;
        let mut url = Url { path: ask.path.clone(), ..base.clone() };
        let mut renewed = false;
        for _ in 0..HOPS {
            let own = url.same_origin(base);
            let proof = if own { self.proof() } else { None };
            let mut headers = Vec::new();
            headers.extend(ask.accept.iter().map(|accept| ("Accept", accept.clone())));
            headers.extend(range.map(|range| ("Range", range.to_owned())));
            headers.extend(proof.iter().map(|proof| ("Authorization", proof.header.clone())));
            let sent = self.inner.http.send(&Request { url: &url, headers: &headers, form: None });
            let response = sent.map_err(|fault| self.failed(ask, fault))?;
            self.inner.reached.store(true, Ordering::Relaxed);
            match response.status().as_u16() {
                200..=299 => return Ok(response),
                416 if range.is_some() => return Ok(response),
                401 if own && !renewed => {
                    self.prove(ask, base, &response, proof.as_ref())?;
                    renewed = true;
                }
                301 | 302 | 303 | 307 | 308 => {
                    let place = header(&response, "location").unwrap_or_default();
                    let next = url.join(place).filter(|_| !place.is_empty());
                    let why = || format!("{} to nowhere ({})", response.status(), place.escape_debug());
                    let next = next.ok_or_else(|| refuse(Kind::Protocol, why()))?;
                    let local = !base.https && is_loopback(next.host());
                    if !next.https && self.inner.verify && !local {
                        let why = format!("it redirects to {}, unencrypted", next.authority);
                        return Err(refuse(Kind::Protocol, why));
                    }
                    url = next;
                }
                _ => return Err(self.refused(ask, &url, own, proof.as_ref(), response)),
            }
        }
        Err(refuse(Kind::Protocol, format!("more than {HOPS} redirects and challenges")))
    }

    /// The registry's root. Where plain http is allowed, TLS is tried first.
    fn base(&self, ask: &Ask) -> Result<&Url> {
        let inner = &self.inner;
        let find = || {
            let server = if inner.domain == HUB { HUB_SERVER } else { &inner.domain };
            let root = Url::parse(&format!("https://{server}/v2/")).ok_or("it is no name of a server")?;
            if inner.verify && !is_loopback(root.host()) {
                return Ok(root);
            }
            match inner.http.send(&Request { url: &root, headers: &[], form: None }) {
                Ok(_) => Ok(root),
                Err(Fault::Lasting(why)) => Err(why),
                Err(_) => Ok(Url { https: false, ..root }),
            }
        };
        let base = inner.base.get_or_init(find);
        base.as_ref().map_err(|why| ask.error(self, Kind::Unreachable, why.clone()))
    }

    fn proof(&self) -> Option<Proof> {
        let mut signed = self.inner.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if signed.proof.as_ref().is_some_and(|proof| !proof.is_good()) {
            signed.proof = None;
        }
        signed.proof.clone()
    }

    fn login(&self, ask: &Ask) -> Result<Option<&Found>> {
        let inner = &self.inner;
        let found = inner.login.get_or_init(|| credentials::find(&inner.sources, &inner.domain, &inner.path));
        match found {
            Ok(found) => Ok(found.as_ref()),
            Err(why) => Err(ask.error(self, Kind::WrongCredentials, why.clone())),
        }
    }

    /// Gets a proof for a challenge; `used` is the one that was not enough.
    fn prove(
        &self,
        ask: &Ask,
        base: &Url,
        response: &Response,
        used: Option<&Proof>,
    ) -> std::result::Result<(), Attempt> {
        let inner = &self.inner;
        // One asks, the others take what it got.
        let mut signed = inner.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if signed.proof.as_ref().is_some_and(|known| Some(known) != used) {
            return Ok(());
        }
        let login = self.login(ask).map_err(Attempt::Final)?;
        let is_basic = |proof: &Proof| proof.header.starts_with("Basic ");
        if used.is_some_and(is_basic) {
            let why = format!("{}: wrong user name or password ({})", response.status(), who(login));
            return Err(Attempt::Final(ask.error(self, Kind::WrongCredentials, why)));
        }
        signed.scopes.entry(format!("repository:{}", inner.path)).or_default().insert("pull".into());
        let offered = auth::challenges(response);
        let answered = auth::answer(&inner.http, base, inner.verify, &offered, &mut signed.scopes, login);
        let (kind, why) = match answered {
            Ok(proof) => {
                signed.proof = Some(proof);
                return Ok(());
            }
            Err(Refusal::Nameless) => (Kind::Missing, format!("it is missing or private ({})", who(None))),
            Err(Refusal::Wrong(why)) => (Kind::WrongCredentials, format!("wrong credentials: {why} ({})", who(login))),
            Err(Refusal::Bad(why)) => (Kind::Protocol, format!("{why} ({})", who(login))),
            Err(Refusal::Failed(fault)) => return Err(self.failed(ask, fault)),
        };
        Err(Attempt::Final(ask.error(self, kind, format!("{}: {why}", response.status()))))
    }

    fn failed(&self, ask: &Ask, fault: Fault) -> Attempt {
        let error = |kind| ask.error(self, kind, fault.text());
        match &fault {
            Fault::Lasting(_) => Attempt::Final(error(Kind::Unreachable)),
            Fault::Unreachable(_) if !self.inner.reached.load(Ordering::Relaxed) => {
                Attempt::Final(error(Kind::Unreachable))
            }
            Fault::Unreachable(_) | Fault::Passing(_) => Attempt::Again(error(Kind::Failed), None),
        }
    }

    /// What an answer that is an error means.
    fn refused(&self, ask: &Ask, url: &Url, own: bool, proof: Option<&Proof>, response: Response) -> Attempt {
        let status = response.status();
        let wanted = header(&response, "retry-after").and_then(retry_after);
        let said = reason(response);
        let place = if own { String::new() } else { format!(" from {}", url.authority) };
        let login = self.inner.login.get().and_then(|l| l.as_ref().ok()).and_then(Option::as_ref);
        let login = login.filter(|_| proof.is_some());
        let is_basic = proof.is_some_and(|p| p.header.starts_with("Basic "));
        let is_token = matches!(login.map(|l| &l.login), Some(Login::Bearer(_)));
        let (kind, meaning) = match status.as_u16() {
            401 if is_token => (Kind::WrongCredentials, ": the token is refused"),
            401 if is_basic => (Kind::WrongCredentials, ": wrong user name or password"),
            401 | 403 if own => (Kind::Missing, ": it is missing or private"),
            404 if own => (Kind::Missing, ""),
            _ => (Kind::Failed, ""),
        };
        let asked_as = if kind == Kind::Failed { String::new() } else { format!(" ({})", who(login)) };
        let said = if said.is_empty() { said } else { format!(": {said}") };
        let why = format!("{status}{place}{said}{meaning}{asked_as}");
        let error = ask.error(self, kind, why);
        match status.as_u16() {
            408 | 429 | 500 | 502..=504 => Attempt::Again(error, wanted),
            _ => Attempt::Final(error),
        }
    }
}

/// With which credentials, for an error.
fn who(login: Option<&Found>) -> String {
    match login {
        None => "asked without credentials".into(),
        Some(Found { login: Login::Password { user, .. }, origin }) => {
            format!("asked as {} by {origin}", user.escape_debug())
        }
        Some(Found { origin, .. }) => format!("asked with the token of {origin}"),
    }
}

/// What the registry says about an error, made fit for one line.
fn reason(response: Response) -> String {
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct All {
        errors: Vec<One>,
    }
    let body = http::small_body(response, ERROR_CAP).unwrap_or_default();
    let parsed: Option<All> = serde_json::from_slice(&body).ok();
    let Some(first) = parsed.and_then(|all| all.errors.into_iter().next()) else { return String::new() };
    let text = if first.message.is_empty() { first.code } else { first.message };
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// How long a server wants to be left alone: seconds or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    let left = until.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(left).unwrap_or_default())
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

    #[test]
    fn retry_after_takes_seconds_and_dates() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Sat, 06 Nov 2094 08:49:37 GMT").unwrap() > Duration::from_secs(1000));
        assert_eq!(retry_after("soon"), None);
    }
}

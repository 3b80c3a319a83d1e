//! Registry client: requests to one registry, with authentication, retries and redirects.

use super::auth::{self, AuthError, Authorization};
use super::credentials::{self, Found};
use super::http::{self, Fault, Http, Method, Request, Response, header};
use super::identity::{HUB, Login};
use super::url::Url;
use super::{Error, Kind, Notice, Result, Settings, Timing};
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Host that serves Docker Hub's registry API.
const HUB_SERVER: &str = "registry-1.docker.io";
/// Number of tries at a mirror; there is another place to read from.
const MIRROR_TRIES: u32 = 2;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const HOPS: usize = 10;
const ERROR_CAP: u64 = 1 << 20;

/// A client for one repository of a registry, or for the registry as a whole. Clones share connections, authorization
/// and cancellation.
#[derive(Clone)]
pub(super) struct Client {
    inner: Arc<Inner>,
    notice: Option<Notice>,
}

struct Inner {
    http: Http,
    /// Registry domain as users write it.
    domain: String,
    /// Repository path; empty for the registry as a whole.
    path: String,
    verify: bool,
    timing: Timing,
    sources: credentials::Sources,
    base: OnceLock<std::result::Result<Url, String>>,
    login: OnceLock<std::result::Result<Option<Found>, String>>,
    signed: Mutex<Signed>,
    /// Whether the registry has answered any request.
    reached: AtomicBool,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct Signed {
    proof: Option<Authorization>,
    scopes: BTreeMap<String, BTreeSet<String>>,
}

/// A request to a registry.
#[derive(Clone)]
pub(super) struct Ask {
    /// Description of the request, for errors.
    what: String,
    method: Method,
    target: Target,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Statuses that are valid answers, besides 2xx.
    answers: &'static [u16],
}

#[derive(Clone)]
enum Target {
    /// Path and query below the registry's root.
    Path(String),
    /// URL that the registry returned.
    Place(Url),
}

impl Ask {
    /// Makes a request for a path of the registry; `what` describes it in errors.
    pub fn new(method: Method, what: impl Into<String>, path: impl Into<String>) -> Ask {
        let (what, target) = (what.into(), Target::Path(path.into()));
        Ask { what, method, target, headers: Vec::new(), body: Vec::new(), answers: &[] }
    }

    /// Sets the URL, for one that the registry returned.
    pub fn at(mut self, place: Url) -> Ask {
        self.target = Target::Place(place);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl ToString) -> Ask {
        self.headers.push((name, value.to_string()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Ask {
        self.body = bytes.into();
        self
    }

    /// Sets the statuses that are valid answers, besides 2xx.
    pub fn answers(mut self, statuses: &'static [u16]) -> Ask {
        self.answers = statuses;
        self
    }

    fn url(&self, base: &Url) -> Url {
        match &self.target {
            Target::Path(path) => base.with_path(path),
            Target::Place(place) => place.clone(),
        }
    }

    /// Makes an error about this request.
    pub fn error(&self, client: &Client, kind: Kind, why: impl Into<String>) -> Error {
        let inner = &client.inner;
        let asked = if inner.path.is_empty() { self.what.clone() } else { format!("{} of {}", self.what, inner.path) };
        Error { host: inner.domain.clone(), asked, kind, why: why.into() }
    }
}

/// Error of a single try.
pub(super) enum Attempt {
    /// Another try would fail the same way.
    Final(Error),
    /// Another try may succeed, after the server's `Retry-After` if it sent one.
    Again(Error, Option<Duration>),
}

/// Retry counter and backoff.
pub(super) struct Backoff {
    tries: u32,
    left: u32,
    next: Duration,
}

impl Backoff {
    /// Sleeps before the next try, at least as long as `wanted`; returns the error after the last one.
    pub fn wait(&mut self, client: &Client, error: Error, wanted: Option<Duration>) -> Result<()> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(Error { why: format!("{} ({} tries)", error.why, self.tries), ..error });
        }
        let pause = wanted.unwrap_or_default().max(self.next).min(LONGEST_PAUSE);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        tracing::warn!("{error}; trying again in {:.1} seconds", pause.as_secs_f64());
        let until = Instant::now() + pause;
        while !client.inner.cancelled.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(notice) = &client.notice {
                notice(left);
            }
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        Err(Error { kind: Kind::Cancelled, why: "cancelled while waiting to try again".into(), ..error })
    }
}

impl Client {
    /// Makes a client for a repository at `domain`, or with an empty path for the registry as a whole. Sends nothing
    /// yet. `actions`, `pull` or `pull,push`, is the scope that tokens are requested for.
    pub fn new(domain: &str, path: &str, actions: &str, settings: &Settings) -> Client {
        let inner = Inner {
            http: Http::new(settings, domain),
            domain: domain.to_owned(),
            path: path.to_owned(),
            verify: settings.tls_verify,
            timing: settings.timing,
            sources: settings.credentials.clone(),
            base: OnceLock::new(),
            login: OnceLock::new(),
            signed: Mutex::default(),
            reached: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        };
        let client = Client { inner: Arc::new(inner), notice: None };
        if !path.is_empty() {
            client.add_scope(&format!("repository:{path}"), actions);
        }
        client
    }

    /// Makes a client for reading from a mirror: without the credentials of `--creds`, and with few tries.
    pub fn mirror(domain: &str, path: &str, settings: &Settings) -> Client {
        let mut settings = settings.clone();
        settings.credentials.given = None;
        settings.timing.tries = settings.timing.tries.min(MIRROR_TRIES);
        Client::new(domain, path, "pull", &settings)
    }

    /// Makes a client for a registry that must not be contacted: every request fails with this error.
    pub fn closed(domain: &str, path: &str, settings: &Settings, why: String) -> Client {
        let client = Client::new(domain, path, "pull", settings);
        let _empty = client.inner.base.set(Err(why));
        client
    }

    /// Adds a resource and actions to the scope of tokens. A token obtained before is discarded.
    pub fn add_scope(&self, resource: &str, actions: &str) {
        let mut signed = self.signed();
        let known = signed.scopes.entry(resource.to_owned()).or_default();
        let before = known.len();
        known.extend(actions.split(',').map(str::to_owned));
        if known.len() > before && signed.proof.as_ref().is_some_and(|p| p.header.starts_with("Bearer ")) {
            signed.proof = None;
        }
    }

    /// Removes a resource that [`Client::add_scope`] added.
    pub fn remove_scope(&self, resource: &str) {
        self.signed().scopes.remove(resource);
    }

    /// Returns a clone that calls `notice` before every wait for another try.
    pub fn watched(&self, notice: Option<Notice>) -> Client {
        Client { notice, ..self.clone() }
    }

    /// Registry domain as users write it.
    pub fn host(&self) -> &str {
        &self.inner.domain
    }

    /// Repository path; empty for the registry as a whole.
    pub fn path(&self) -> &str {
        &self.inner.path
    }

    /// Cancels every wait for another try, current and future.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Relaxed);
    }

    /// Resolves `reference`, a URL reference in the answer to `ask`; fails if that URL must not be requested.
    pub fn place(&self, ask: &Ask, reference: &str) -> Result<Url> {
        let base = self.base(ask)?;
        let here = ask.url(base);
        let url = here.join(reference).filter(|_| !reference.is_empty());
        let url = url.ok_or_else(|| {
            let why = format!("the answer has an invalid URL ({})", reference.escape_debug());
            ask.error(self, Kind::Protocol, why)
        })?;
        let local = !base.is_https() && url.is_loopback();
        if !url.is_https() && self.inner.verify && !local {
            let why = format!("it redirects to {} without https", url.authority());
            return Err(ask.error(self, Kind::Protocol, why));
        }
        Ok(url)
    }

    /// Whether the URL has the registry's own origin.
    pub fn is_own(&self, ask: &Ask, place: &Url) -> Result<bool> {
        Ok(place.same_origin(self.base(ask)?))
    }

    /// Returns a fresh retry counter.
    pub fn backoff(&self) -> Backoff {
        let timing = self.inner.timing;
        Backoff { tries: timing.tries, left: timing.tries, next: timing.pause }
    }

    /// Sends the request until an answer is successful and `read` could read it.
    pub fn ask_for<T>(&self, ask: &Ask, read: impl Fn(Response) -> std::result::Result<T, Fault>) -> Result<T> {
        let mut backoff = self.backoff();
        loop {
            let done = self.try_once(ask).and_then(|r| read(r).map_err(|fault| self.failed(ask, fault)));
            match done {
                Ok(value) => return Ok(value),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error, wanted)) => backoff.wait(self, error, wanted)?,
            }
        }
    }

    /// Sends the request once: answers challenges and follows redirects, but does not retry.
    pub fn try_once(&self, ask: &Ask) -> std::result::Result<Response, Attempt> {
        let refuse = |kind, why: String| Attempt::Final(ask.error(self, kind, why));
        let base = self.base(ask).map_err(Attempt::Final)?;
        let mut url = ask.url(base);
        let mut renewed = false;
        for _ in 0..HOPS {
            let own = url.same_origin(base);
            let proof = if own { self.proof() } else { None };
            let mut headers = ask.headers.clone();
            headers.extend(proof.iter().map(|proof| ("Authorization", proof.header.clone())));
            let request = Request { method: ask.method, url: &url, headers: &headers, body: &ask.body };
            let response = self.inner.http.send(&request).map_err(|fault| self.failed(ask, fault))?;
            self.inner.reached.store(true, Ordering::Relaxed);
            let status = response.status().as_u16();
            let follows = ask.method.is_safe() || matches!(status, 307 | 308);
            match status {
                200..=299 => return Ok(response),
                _ if ask.answers.contains(&status) => return Ok(response),
                401 if own && !renewed => {
                    self.authenticate(ask, base, &response, proof.as_ref())?;
                    renewed = true;
                }
                301 | 302 | 303 | 307 | 308 if follows => {
                    let place = header(&response, "location").unwrap_or_default();
                    url = self.place(&ask.clone().at(url), place).map_err(Attempt::Final)?;
                }
                _ => return Err(self.refused(ask, &url, own, proof.as_ref(), response)),
            }
        }
        Err(refuse(Kind::Protocol, format!("more than {HOPS} redirects and challenges")))
    }

    /// Returns the registry's root URL. Where plain http is allowed, TLS is tried first.
    fn base(&self, ask: &Ask) -> Result<&Url> {
        let inner = &self.inner;
        let find = || {
            let server = if inner.domain == HUB { HUB_SERVER } else { &inner.domain };
            let root = |https| Url::of_server(server, https).ok_or("not a valid server name");
            let secure = root(true)?.with_path("/v2/");
            if inner.verify && !secure.is_loopback() {
                return Ok(secure);
            }
            match inner.http.send(&Request::get(&secure, &[])) {
                Ok(_) => Ok(secure),
                Err(Fault::Lasting(why)) => Err(why),
                Err(_) => Ok(root(false)?.with_path("/v2/")),
            }
        };
        let base = inner.base.get_or_init(find);
        base.as_ref().map_err(|why| ask.error(self, Kind::Unreachable, why.clone()))
    }

    fn signed(&self) -> MutexGuard<'_, Signed> {
        self.inner.signed.lock()
    }

    fn proof(&self) -> Option<Authorization> {
        let mut signed = self.signed();
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

    /// Obtains the authorization for a challenge; `used` is the one that the server rejected.
    fn authenticate(
        &self,
        ask: &Ask,
        base: &Url,
        response: &Response,
        used: Option<&Authorization>,
    ) -> std::result::Result<(), Attempt> {
        let inner = &self.inner;
        // The lock makes one thread authenticate; the others reuse its result.
        let mut signed = self.signed();
        if signed.proof.as_ref().is_some_and(|known| Some(known) != used) {
            return Ok(());
        }
        let login = self.login(ask).map_err(Attempt::Final)?;
        let is_basic = |proof: &Authorization| proof.header.starts_with("Basic ");
        if used.is_some_and(is_basic) {
            let why = format!("{}: wrong user name or password ({})", response.status(), who(login));
            return Err(Attempt::Final(ask.error(self, Kind::WrongCredentials, why)));
        }
        let offered = auth::challenges(response);
        let answered = auth::answer(&inner.http, base, inner.verify, &offered, &mut signed.scopes, login);
        let (kind, why) = match answered {
            Ok(proof) => {
                signed.proof = Some(proof);
                return Ok(());
            }
            Err(AuthError::Nameless) => (Kind::Missing, format!("it is missing or private ({})", who(None))),
            Err(AuthError::Wrong(why)) => {
                (Kind::WrongCredentials, format!("wrong credentials: {why} ({})", who(login)))
            }
            Err(AuthError::Bad(why)) => (Kind::Protocol, format!("{why} ({})", who(login))),
            Err(AuthError::Failed(fault)) => return Err(self.failed(ask, fault)),
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

    /// Converts an error answer to an error.
    fn refused(&self, ask: &Ask, url: &Url, own: bool, proof: Option<&Authorization>, response: Response) -> Attempt {
        let (status, inner) = (response.status(), &self.inner);
        let wanted = header(&response, "retry-after").and_then(retry_after);
        let said = reason(response);
        let place = if own { String::new() } else { format!(" from {}", url.authority()) };
        let login = inner.login.get().and_then(|l| l.as_ref().ok()).and_then(Option::as_ref);
        let login = login.filter(|_| proof.is_some());
        let is_basic = proof.is_some_and(|p| p.header.starts_with("Basic "));
        let is_token = matches!(login.map(|l| &l.login), Some(Login::Bearer(_)));
        let (kind, meaning) = match status.as_u16() {
            401 if is_token => (Kind::WrongCredentials, ": the token is refused"),
            401 if is_basic => (Kind::WrongCredentials, ": wrong user name or password"),
            // A request for the registry as a whole has no resource: the server rejects the credentials themselves.
            401 | 403 if own && inner.path.is_empty() && login.is_some() => {
                (Kind::WrongCredentials, ": these credentials are not accepted")
            }
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

/// Names the credentials used, for an error.
fn who(login: Option<&Found>) -> String {
    match login {
        None => "without credentials".into(),
        Some(Found { login: Login::Password { user, .. }, origin }) => {
            format!("user {} from {origin}", user.escape_debug())
        }
        Some(Found { origin, .. }) => format!("token from {origin}"),
    }
}

/// Returns the error text of a registry's answer, as one line.
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

/// Parses `Retry-After`: seconds or an HTTP date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    let left = until.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(left).unwrap_or_default())
}

/// Makes a request below the path of the client's repository.
pub(super) fn ask_below(client: &Client, method: Method, what: String, below: &str) -> Ask {
    Ask::new(method, what, format!("/v2/{}/{below}", client.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_takes_seconds_and_dates() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Sat, 06 Nov 2094 08:49:37 GMT").unwrap() > Duration::from_secs(1000));
        assert_eq!(retry_after("soon"), None);
    }
}

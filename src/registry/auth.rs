//! Registry authentication: `WWW-Authenticate` challenges, Basic headers and bearer tokens.

use super::credentials::Found;
use super::http::{self, Fault, Http, Method, Request, Response};
use super::identity::Login;
use super::url::Url;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Largest token response, in bytes.
const TOKEN_CAP: u64 = 1 << 20;
/// Lifetime of a token that states none, and how long before its expiry a token is no longer used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKEN_MARGIN: Duration = Duration::from_secs(5);

/// An authentication challenge of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Challenge {
    /// Authentication scheme in lower case: `basic`, `bearer`.
    pub scheme: String,
    /// Parameters; names in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// Parses `WWW-Authenticate` headers, each of which may hold several challenges.
pub(super) fn challenges(response: &Response) -> Vec<Challenge> {
    let all = response.headers().get_all("www-authenticate");
    all.iter().filter_map(|value| value.to_str().ok()).flat_map(parse).collect()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=', '\t']).unwrap_or(rest.len());
        let word = rest[..end].to_ascii_lowercase();
        let after = rest[end..].trim_start();
        if let (Some(value), Some(last)) = (after.strip_prefix('='), found.last_mut()) {
            let (value, left) = parameter(value.trim_start());
            last.parameters.entry(word).or_insert(value);
            rest = left;
        } else {
            found.push(Challenge { scheme: word, parameters: BTreeMap::new() });
            // Text that is no challenge must not stop the parser.
            rest = after.trim_start_matches('=');
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// Splits a quoted or bare parameter value from the text after it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

/// The `Authorization` header for a repository's requests.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authorization {
    /// Value of the header.
    pub header: String,
    /// Time from which on the header is no longer valid.
    pub expires: Option<Instant>,
}

impl Authorization {
    fn lasting(header: String) -> Authorization {
        Authorization { header, expires: None }
    }

    /// Whether the header may still be used.
    pub fn is_good(&self) -> bool {
        self.expires.is_none_or(|end| Instant::now() < end)
    }
}

/// Why authentication failed.
pub(super) enum AuthError {
    /// The registry requires credentials and none are known.
    Nameless,
    /// The registry rejected the credentials.
    Wrong(String),
    /// The challenge must not or cannot be answered.
    Bad(String),
    /// The token server failed; another try may succeed.
    Failed(Fault),
}

/// Answers the challenges of the registry at `base`. Scopes of earlier requests are kept.
pub(super) fn answer(
    http: &Http,
    base: &Url,
    verify: bool,
    offered: &[Challenge],
    scopes: &mut BTreeMap<String, BTreeSet<String>>,
    login: Option<&Found>,
) -> Result<Authorization, AuthError> {
    let of = |scheme: &str| offered.iter().find(|c| c.scheme == scheme);
    if let Some(Login::Bearer(token)) = login.map(|l| &l.login) {
        return Ok(Authorization::lasting(format!("Bearer {token}")));
    }
    if let Some(bearer) = of("bearer") {
        let realm = bearer.parameters.get("realm").map(String::as_str).unwrap_or_default();
        let realm = check_realm(realm, base, verify).map_err(AuthError::Bad)?;
        if let Some(scope) = bearer.parameters.get("scope") {
            merge(scopes, scope);
        }
        return token(http, &realm, bearer.parameters.get("service"), scopes, login);
    }
    if of("basic").is_some() {
        return match login.map(|l| &l.login) {
            Some(Login::Password { user, password }) => Ok(Authorization::lasting(basic(user, password))),
            Some(_) => Err(AuthError::Bad("it requires a password, but the credentials are a token".into())),
            None => Err(AuthError::Nameless),
        };
    }
    let schemes: Vec<&str> = offered.iter().map(|c| c.scheme.as_str()).collect();
    Err(AuthError::Bad(format!("it requires an unsupported authentication scheme ({})", schemes.join(", "))))
}

/// Checks a token server's URL (`realm`): https unless the registry itself uses http, and no host inside a private
/// network unless the registry is there too.
fn check_realm(realm: &str, base: &Url, verify: bool) -> Result<Url, String> {
    let url = Url::parse(realm).ok_or_else(|| format!("its token server `{}` is not a URL", realm.escape_debug()))?;
    if url.same_host(base) {
        if !url.is_https() && base.is_https() && verify {
            return Err(format!("its token server {url} does not use https"));
        }
        return Ok(url);
    }
    if !url.is_https() && verify {
        return Err(format!("its token server {url} does not use https"));
    }
    // A company's registry and its token server may both have names that resolve to private addresses.
    let kin = url.is_named() && base.is_named() && base.is_private();
    if url.is_private() && !kin {
        return Err(format!("its token server {url} is in a private network"));
    }
    Ok(url)
}

fn merge(scopes: &mut BTreeMap<String, BTreeSet<String>>, text: &str) {
    for scope in text.split_whitespace() {
        if let Some((resource, actions)) = scope.rsplit_once(':') {
            let known = scopes.entry(resource.to_owned()).or_default();
            known.extend(actions.split(',').filter(|a| !a.is_empty()).map(str::to_owned));
        }
    }
}

/// Returns the value of a Basic `Authorization` header.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn token(
    http: &Http,
    realm: &Url,
    service: Option<&String>,
    scopes: &BTreeMap<String, BTreeSet<String>>,
    login: Option<&Found>,
) -> Result<Authorization, AuthError> {
    let joined = |actions: &BTreeSet<String>| actions.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    let scopes: Vec<String> = scopes.iter().map(|(resource, a)| format!("{resource}:{}", joined(a))).collect();
    let service = service.map(String::as_str);
    let (user, grant) = match login.map(|l| &l.login) {
        Some(Login::Identity(identity)) => {
            let grant = format!("grant_type=refresh_token&refresh_token={}", encode(identity));
            return exchange(http, realm, &TokenRequest::Post { grant: &grant, service, scopes: &scopes }, login);
        }
        Some(Login::Password { user, password }) => {
            let grant = format!("grant_type=password&username={}&password={}", encode(user), encode(password));
            (Some((user, password)), Some(grant))
        }
        _ => (None, None),
    };
    let ask = TokenRequest::Get { user: user.map(|(u, p)| (u.as_str(), p.as_str())), service, scopes: &scopes };
    match (exchange(http, realm, &ask, login), grant) {
        // Some token servers support OAuth2 (POST) only.
        (Err(AuthError::Bad(why)), Some(grant)) if why.ends_with(NO_GET) => {
            exchange(http, realm, &TokenRequest::Post { grant: &grant, service, scopes: &scopes }, login)
        }
        (done, _) => done,
    }
}

const NO_GET: &str = "does not support GET";

enum TokenRequest<'a> {
    Get { user: Option<(&'a str, &'a str)>, service: Option<&'a str>, scopes: &'a [String] },
    Post { grant: &'a str, service: Option<&'a str>, scopes: &'a [String] },
}

fn exchange(
    http: &Http,
    realm: &Url,
    ask: &TokenRequest<'_>,
    login: Option<&Found>,
) -> Result<Authorization, AuthError> {
    let asked = Instant::now();
    let sent = match ask {
        TokenRequest::Get { user, service, scopes } => {
            let mut query: Vec<String> = service.iter().map(|s| format!("service={}", encode(s))).collect();
            query.extend(scopes.iter().map(|s| format!("scope={}", encode(s))));
            query.extend(user.iter().map(|(user, _)| format!("account={}", encode(user))));
            let url = realm.with_query(&query.join("&"));
            let headers: Vec<_> = user.iter().map(|(u, p)| ("Authorization", basic(u, p))).collect();
            http.send(&Request::get(&url, &headers))
        }
        TokenRequest::Post { grant, service, scopes } => {
            let service = service.map(|s| format!("&service={}", encode(s))).unwrap_or_default();
            let scope = encode(&scopes.join(" "));
            let form = format!("{grant}{service}&client_id=plyfs&scope={scope}");
            let headers = [("Content-Type", "application/x-www-form-urlencoded".to_owned())];
            http.send(&Request { method: Method::Post, url: realm, headers: &headers, body: form.as_bytes() })
        }
    };
    let server = format!("its token server {}", realm.authority());
    let at_server = |fault: Fault| match fault {
        Fault::Lasting(why) => Fault::Lasting(format!("{server}: {why}")),
        Fault::Unreachable(why) => Fault::Unreachable(format!("{server}: {why}")),
        Fault::Passing(why) => Fault::Passing(format!("{server}: {why}")),
    };
    let response = sent.map_err(|fault| AuthError::Failed(at_server(fault)))?;
    let status = response.status();
    match status.as_u16() {
        200..=299 => {}
        401 | 403 if login.is_some() => return Err(AuthError::Wrong(format!("{server} answers {status}"))),
        401 | 403 => return Err(AuthError::Nameless),
        404 | 405 if matches!(ask, TokenRequest::Get { .. }) && login.is_some() => {
            return Err(AuthError::Bad(format!("{server} {NO_GET}")));
        }
        429 | 500..=599 => return Err(AuthError::Failed(Fault::Passing(format!("{server} answers {status}")))),
        _ => return Err(AuthError::Bad(format!("{server} answers {status}"))),
    }
    let bytes = http::small_body(response, TOKEN_CAP).map_err(|fault| AuthError::Failed(at_server(fault)))?;
    read_token(&bytes, asked).ok_or_else(|| AuthError::Bad(format!("{server} returned no token")))
}

fn read_token(bytes: &[u8], asked: Instant) -> Option<Authorization> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let answer: Token = serde_json::from_slice(bytes).ok()?;
    let full = |t: &String| !t.is_empty() && t.chars().all(|c| c.is_ascii_graphic());
    let token = answer.token.filter(full).or(answer.access_token.filter(full))?;
    let life = answer.expires_in.filter(|s| *s > 0).map_or(TOKEN_LIFE, |s| Duration::from_secs(s.min(86400)));
    let life = life.saturating_sub(TOKEN_MARGIN).max(Duration::from_secs(1));
    Some(Authorization { header: format!("Bearer {token}"), expires: Some(asked + life) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn challenges_are_parsed() {
        let found = parse(r#"Bearer realm="https://a/t?x=1,2",service="s \"q\"", scope="repository:a/b:pull,push""#);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].parameters["realm"], "https://a/t?x=1,2");
        assert_eq!(found[0].parameters["service"], "s \"q\"");
        assert_eq!(found[0].parameters["scope"], "repository:a/b:pull,push");
        let two = parse("Negotiate, BASIC realm=x , Bearer realm=\"y");
        let schemes: Vec<&str> = two.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!((two[1].parameters["realm"].as_str(), two[2].parameters["realm"].as_str()), ("x", "y"));
        for odd in ["", ",", "= =", "a=b=c", "\"", "Bearer ,,,=", "é=\"", "Basic realm=\"\\"] {
            let _any = parse(odd);
        }
    }

    #[test]
    fn realms() {
        let far = url("https://registry.invalid/");
        let near = url("http://127.0.0.1:5000/");
        let ok = |realm: &str, base: &Url, verify| check_realm(realm, base, verify).is_ok();
        assert!(ok("https://auth.invalid/token", &far, true));
        assert!(!ok("http://auth.invalid/token", &far, true) && ok("http://auth.invalid/token", &far, false));
        assert!(!ok("http://registry.invalid/token", &far, true));
        assert!(ok("http://127.0.0.1:5001/token", &near, true));
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "[::1]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:10.0.0.1]",
            "localhost",
            "localhost.",
            "x.localhost",
        ] {
            let realm = &*format!("https://{host}/t");
            assert!(!ok(realm, &far, true) && !ok(realm, &far, false), "{realm}");
        }
        assert!(!ok("https://10.0.0.1/t", &near, true));
        assert!(!ok("file:///etc/passwd", &far, true) && !ok("https://u:p@auth.invalid/", &far, true));
    }

    #[test]
    fn scopes_merge() {
        let mut scopes = BTreeMap::new();
        merge(&mut scopes, "repository:a/b:pull");
        merge(&mut scopes, "repository:a/b:push,pull registry:catalog:*");
        assert_eq!(scopes.len(), 2);
        assert_eq!(scopes["repository:a/b"].iter().map(String::as_str).collect::<Vec<_>>(), ["pull", "push"]);
    }

    #[test]
    fn tokens() {
        let now = Instant::now();
        let header = |json: &str| read_token(json.as_bytes(), now).map(|p| p.header);
        assert_eq!(header(r#"{"token":"a","access_token":"b"}"#).unwrap(), "Bearer a");
        assert_eq!(header(r#"{"token":"","access_token":"b"}"#).unwrap(), "Bearer b");
        assert!(header("{}").is_none() && header(r#"{"token":"a\r\nX: y"}"#).is_none() && header("[").is_none());
        assert!(!Authorization { header: String::new(), expires: Some(now) }.is_good());
    }
}

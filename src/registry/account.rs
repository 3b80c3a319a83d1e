//! What a user logs in to, and whether the registry takes what he says of himself.

use super::client::{Ask, Client};
use super::credentials::{HUB, HUB_ALIASES, bare};
use super::http::{self, Method};
use super::url::Url;
use super::{Result, Settings};
use std::fmt;
use std::str::FromStr;

/// More bytes than this are no answer to somebody who only says who he is.
const ANSWER_CAP: u64 = 1 << 20;

/// A registry, or a namespace or repository of one, that credentials may be kept for. Prints as the key that stands for
/// it in podman's files: `quay.io`, `quay.io/team`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    domain: String,
    path: String,
}

/// Why a text names nothing to log in to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no registry: say HOST[:PORT] or HOST[:PORT]/NAMESPACE")]
pub struct ParseAccountError(String);

impl Account {
    /// Docker Hub, which is meant when nothing is named.
    pub fn hub() -> Account {
        Account { domain: HUB.into(), path: String::new() }
    }

    /// The registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The namespace or repository in it; empty for the registry as a whole.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is Docker Hub as a whole.
    pub fn is_hub(&self) -> bool {
        self.domain == HUB && self.path.is_empty()
    }

    /// Every key that may stand for it in a file, its own first.
    pub(super) fn keys(&self) -> Vec<String> {
        let aliases: &[&str] = if self.is_hub() { &HUB_ALIASES } else { &[] };
        std::iter::once(self.to_string()).chain(aliases.iter().map(|alias| (*alias).to_owned())).collect()
    }

    /// Whether the key of a file means it, be it written with a scheme as older versions did.
    pub(super) fn is_meant_by(&self, key: &str) -> bool {
        let keys = self.keys();
        keys.iter().any(|known| known == key || known == bare(key))
    }
}

impl FromStr for Account {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> std::result::Result<Account, ParseAccountError> {
        let refused = || ParseAccountError(text.escape_debug().to_string());
        // A URL means its host, whatever follows.
        let name = bare(text);
        let (domain, path) = name.split_once('/').unwrap_or((name, ""));
        let word = |part: &str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
            part.bytes().all(inner) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        let is_host = Url::of_server(domain, true).is_some();
        let path = path.strip_suffix('/').unwrap_or(path);
        if !is_host || !(path.is_empty() || path.split('/').all(word)) {
            return Err(refused());
        }
        let domain = domain.to_ascii_lowercase();
        if HUB_ALIASES.contains(&domain.as_str()) {
            let path = if path == "v1" { "" } else { path };
            return Ok(Account { domain: HUB.into(), path: path.into() });
        }
        Ok(Account { domain, path: path.into() })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.domain),
            path => write!(f, "{}/{path}", self.domain),
        }
    }
}

/// Shows the registry the credentials that the settings have been given. It is no error if the registry wants none.
pub fn check(account: &Account, settings: &Settings) -> Result<()> {
    let client = Client::new(&account.domain, "", "", settings);
    let ask = Ask::new(Method::Get, "login", "/v2/");
    client.ask_for(&ask, |response| http::small_body(response, ANSWER_CAP).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_logged_in_to() {
        for (text, key) in [
            ("quay.io", "quay.io"),
            ("quay.io/team", "quay.io/team"),
            ("quay.io/team/app/", "quay.io/team/app"),
            ("https://Quay.io/v2/", "quay.io"),
            ("localhost:5000", "localhost:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io/team", "docker.io/team"),
        ] {
            assert_eq!(text.parse::<Account>().unwrap().to_string(), key, "{text}");
        }
        for bad in ["", "/", "https://", "a b", "quay.io/team:tag", "quay.io//x", "u:p@quay.io", ":5000", "q/T", "q/.."]
        {
            assert!(bad.parse::<Account>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_else_means_the_same() {
        let of = |text: &str| text.parse::<Account>().unwrap();
        assert!(of("docker.io").is_meant_by("https://index.docker.io/v1/"));
        assert!(of("a.example").is_meant_by("http://a.example/v1/") && !of("a.example").is_meant_by("a.example/x"));
        assert!(!of("docker.io/x").is_meant_by("https://index.docker.io/v1/"));
    }
}

//! Registry identities: [`Account`], the registry or namespace that credentials are for, and `Login`, the
//! credentials.

use super::url::Url;
use std::fmt;
use std::str::FromStr;

/// Docker's name for Docker Hub in credential files and helpers.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Docker's name for Docker Hub in references. No server of that name serves images.
pub(super) const HUB: &str = "docker.io";
/// Other names of Docker Hub in credential files.
pub(super) const HUB_ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", HUB_KEY];

/// A registry, or a namespace or repository of one, that credentials are stored for. Prints as its key in podman's
/// files: `quay.io`, `quay.io/team`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    domain: String,
    path: String,
}

/// Error for a text that names no registry or namespace.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a registry: wanted HOST[:PORT] or HOST[:PORT]/NAMESPACE")]
pub struct ParseAccountError(String);

impl Account {
    /// Docker Hub, the default registry.
    pub fn hub() -> Account {
        Account { domain: HUB.into(), path: String::new() }
    }

    /// The registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The namespace or repository; empty for the registry as a whole.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether this is Docker Hub as a whole.
    pub fn is_hub(&self) -> bool {
        self.domain == HUB && self.path.is_empty()
    }

    /// Returns every key for the account in a credential file, its own first.
    pub(super) fn keys(&self) -> Vec<String> {
        let aliases: &[&str] = if self.is_hub() { &HUB_ALIASES } else { &[] };
        std::iter::once(self.to_string()).chain(aliases.iter().map(|alias| (*alias).to_owned())).collect()
    }

    /// Whether a key of a credential file stands for the account; older versions wrote keys with a scheme.
    pub(super) fn is_meant_by(&self, key: &str) -> bool {
        let keys = self.keys();
        keys.iter().any(|known| known == key || known == bare(key))
    }
}

impl FromStr for Account {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> std::result::Result<Account, ParseAccountError> {
        let refused = || ParseAccountError(text.escape_debug().to_string());
        // Of a URL only the host counts.
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

/// Credentials. Has no `Debug`, so that they are never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// User name and password.
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token (`identitytoken`).
    Identity(String),
    /// A bearer token to send as it is (`registrytoken`).
    Bearer(String),
}

/// Strips the scheme and path that older versions wrote around a key's host.
pub(super) fn bare(key: &str) -> &str {
    match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    }
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

//! Image references: `name`, `name:tag`, `name@digest`, with Docker's short forms.
//!
//! `alpine` means `docker.io/library/alpine`. Output uses the short ("familiar") form, the store the long ("canonical")
//! one, so that two spellings of one name are equal.

use crate::digest::Digest;
use std::fmt;
use std::str::FromStr;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
/// The tag of a reference without tag and digest.
pub const DEFAULT_TAG: &str = "latest";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A validated, normalized image reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseReferenceError {
    /// The text does not match the grammar.
    #[error("invalid reference format")]
    Format,
    /// The repository name has capitals.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// The repository name is longer than registries accept.
    #[error("repository name must not be more than {NAME_MAX} characters")]
    TooLong,
    /// Sixty-four hex digits: an image ID, never a name.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
}

impl Reference {
    /// Returns the repository's canonical name, `docker.io/library/alpine`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Returns the registry, `docker.io` or `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the repository within its registry, `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the repository's short name, `alpine`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// Returns the whole reference in its short form, `alpine:latest`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// Returns the tag, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if any.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Adds the tag `latest` to a reference without tag and digest.
    pub fn or_latest(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// Returns the repository with only the digest.
    pub fn by_digest(&self, digest: &Digest) -> Reference {
        Reference { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }

    /// Returns the repository with another tag and no digest.
    pub fn by_tag(&self, tag: &str) -> Result<Reference, ParseReferenceError> {
        if !is_tag(tag) {
            return Err(ParseReferenceError::Format);
        }
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// Converts a file name to the nearest valid repository name: lower case, with a hyphen for anything else.
    pub fn from_file_name(name: &str) -> Reference {
        let mut path = String::new();
        for c in name.chars().flat_map(char::to_lowercase) {
            let keep = c.is_ascii_lowercase() || c.is_ascii_digit();
            match c {
                _ if keep => path.push(c),
                '.' | '_' | '-' if path.ends_with(|l: char| l.is_ascii_alphanumeric()) => path.push(c),
                _ if path.ends_with(|l: char| l.is_ascii_alphanumeric()) => path.push('-'),
                _ => {}
            }
            if path.len() >= TAG_MAX {
                break;
            }
        }
        let path = path.trim_end_matches(|l: char| !l.is_ascii_alphanumeric());
        let path = if path.is_empty() || is_hex_id(path) { "image" } else { path };
        Reference { domain: DEFAULT_DOMAIN.into(), path: format!("{OFFICIAL}{path}"), tag: None, digest: None }
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Reference, ParseReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| ParseReferenceError::Format)?)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(ParseReferenceError::Format);
        }
        if is_hex_id(name) {
            return Err(ParseReferenceError::LooksLikeId(name.to_owned()));
        }
        let (domain, path) = split_domain(name);
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(ParseReferenceError::Uppercase(path));
        }
        if !is_domain(&domain) || !path.split('/').all(is_component) {
            return Err(ParseReferenceError::Format);
        }
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(ParseReferenceError::TooLong);
        }
        Ok(Reference { domain, path, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Reference {
    /// The canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Reference, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Splits off the registry: the first part is one if it has a dot, a port or capitals, or is `localhost`.
fn split_domain(name: &str) -> (String, String) {
    let (mut domain, mut path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first.to_owned(), rest.to_owned())
        }
        _ => (DEFAULT_DOMAIN.to_owned(), name.to_owned()),
    };
    if domain == LEGACY_DOMAIN {
        domain = DEFAULT_DOMAIN.to_owned();
    }
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        path.insert_str(0, OFFICIAL);
    }
    (domain, path)
}

fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= TAG_MAX
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Whether the text is runs of `[a-z0-9]` joined by `.`, `_`, `__` or hyphens.
fn is_component(text: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum);
    ends && bytes
        .split(alnum)
        .filter(|joint| !joint.is_empty())
        .all(|joint| matches!(joint, b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((v6, port)) => {
            if v6.is_empty() || !v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn familiar_and_canonical_names_agree() {
        for (text, familiar, canonical) in [
            ("alpine", "alpine", "docker.io/library/alpine"),
            ("index.docker.io/alpine:3", "alpine:3", "docker.io/library/alpine:3"),
            ("me/app", "me/app", "docker.io/me/app"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
            ("[::1]:5000/a/b", "[::1]:5000/a/b", "[::1]:5000/a/b"),
            ("quay.io/a__b/c--d", "quay.io/a__b/c--d", "quay.io/a__b/c--d"),
        ] {
            let r: Reference = text.parse().unwrap();
            assert_eq!((r.familiar().as_str(), r.to_string().as_str()), (familiar, canonical));
            assert_eq!(r.to_string().parse::<Reference>().unwrap(), r);
        }
        let both: Reference = format!("alpine:3@{DIGEST}").parse().unwrap();
        assert_eq!(both.familiar(), format!("alpine:3@{DIGEST}"));
        assert_eq!("alpine".parse::<Reference>().unwrap().or_latest().familiar(), "alpine:latest");
    }

    #[test]
    fn invalid_references_are_rejected() {
        let long = "a".repeat(250);
        let id = "a".repeat(64);
        for bad in
            ["", ":x", "a:", "a:b:c", "a//b", "-a", "a-", "a..b", "a___b", "a@sha256:00", "a/../b", "a b", &long, &id]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad} parsed");
        }
        assert_eq!("a/FOO".parse::<Reference>(), Err(ParseReferenceError::Uppercase("a/FOO".into())));
    }

    #[test]
    fn file_names_become_repository_names() {
        for (file, name) in
            [("My Image", "my-image"), ("..", "image"), ("a__b.oci", "a_b.oci"), ("x-", "x"), ("é", "image")]
        {
            let made = Reference::from_file_name(file);
            assert_eq!(made.familiar_name(), name);
            assert_eq!(made.to_string().parse::<Reference>().unwrap(), made);
        }
    }
}

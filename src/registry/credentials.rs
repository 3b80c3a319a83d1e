//! Credential lookup: `--creds`, auth.json (podman) and config.json (Docker), and the credential helpers that they
//! name.

use super::helper;
use super::identity::{Account, HUB, HUB_ALIASES, HUB_KEY, Login, bare};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Largest credential file, in bytes.
const FILE_CAP: u64 = 4 << 20;

/// Sources of credentials, in order of precedence. Plain data: callers read the environment.
#[derive(Clone, Default)]
pub struct Sources {
    /// Credentials given for this invocation.
    pub given: Option<Given>,
    /// The only file to read, if one was named. It must exist.
    pub file: Option<PathBuf>,
    /// Default files, which may be missing.
    pub usual_files: Vec<PathBuf>,
}

/// A user name and a password. Has no `Debug`, so that it is never printed.
#[derive(Clone)]
pub struct Given {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Source of the credentials, for errors: `--creds`, a file or a credential helper.
    pub origin: String,
}

/// Credentials and their source.
#[derive(Clone)]
pub(super) struct Found {
    /// The credentials.
    pub login: Login,
    /// Source, for errors: `--creds`, a file or a credential helper.
    pub origin: String,
}

/// Content of a credential file.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AuthFile {
    #[serde(deserialize_with = "null_is_empty")]
    auths: BTreeMap<String, Entry>,
    /// Credential helper per key; an empty name means the file itself.
    #[serde(deserialize_with = "null_is_empty")]
    pub cred_helpers: BTreeMap<String, String>,
    /// Credential helper for all other keys.
    #[serde(deserialize_with = "null_is_empty")]
    pub creds_store: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// Returns the credentials for a repository, if there are any. An error is one line naming the file or helper at fault.
pub(super) fn find(sources: &Sources, domain: &str, path: &str) -> Result<Option<Found>, String> {
    if let Some(Given { user, password, origin }) = sources.given.clone() {
        return Ok(Some(Found { login: Login::Password { user, password }, origin }));
    }
    // All servers of Docker Hub count as one registry.
    let domain = if HUB_ALIASES.contains(&domain) { HUB } else { domain };
    if let Some(file) = &sources.file {
        return in_file(file, &read(file)?, domain, path);
    }
    for file in &sources.usual_files {
        let there = match fs::metadata(file) {
            Ok(_) => true,
            Err(e) => !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        };
        if there && let Some(found) = in_file(file, &read(file)?, domain, path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns the user name and password stored for the account, if there are any and no token takes their place.
pub fn kept(sources: &Sources, account: &Account) -> Result<Option<Given>, String> {
    let found = find(sources, account.domain(), account.path())?;
    Ok(found.and_then(|found| match found.login {
        Login::Password { user, password } => Some(Given { user, password, origin: found.origin }),
        Login::Identity(_) | Login::Bearer(_) => None,
    }))
}

/// Lists the registries that a credential file has credentials for: host names only, sorted, each with the credential
/// helper that has its secret. An error is one line that names the file.
pub fn hosts(file: &Path) -> Result<Vec<String>, String> {
    let auths = read(file)?;
    let helped = auths.cred_helpers.iter().filter(|(_, helper)| !helper.is_empty());
    let helped = helped.map(|(host, helper)| format!("{} (docker-credential-{helper})", bare(host)));
    let plain = auths.auths.keys().filter(|host| auths.cred_helpers.get(*host).is_none_or(String::is_empty));
    let mut all: Vec<String> = plain.map(|host| bare(host).to_owned()).chain(helped).collect();
    all.sort();
    all.dedup();
    if !auths.creds_store.is_empty() {
        all.push(format!("others (docker-credential-{})", auths.creds_store));
    }
    Ok(all)
}

/// Reads a credential file. An error is one line that names it.
pub(super) fn read(file: &Path) -> Result<AuthFile, String> {
    let bytes = read_bytes(file)?;
    if bytes.trim_ascii().is_empty() {
        return Ok(AuthFile::default());
    }
    parse(file, &bytes)
}

/// Parses the content of a credential file.
pub(super) fn parse<T: serde::de::DeserializeOwned>(file: &Path, bytes: &[u8]) -> Result<T, String> {
    // The parser's message could quote a secret, so the error states the position only.
    serde_json::from_slice(bytes)
        .map_err(|e| format!("{} is not a credentials file (line {}, column {})", file.display(), e.line(), e.column()))
}

/// Reads the bytes of a credential file.
pub(super) fn read_bytes(file: &Path) -> Result<Vec<u8>, String> {
    let name = file.display();
    let cannot = |e: io::Error| format!("cannot read credentials from {name}: {}", crate::sys::describe(&e));
    if fs::metadata(file).map_err(cannot)?.len() > FILE_CAP {
        return Err(format!("{name} is too large for a credentials file"));
    }
    fs::read(file).map_err(cannot)
}

fn in_file(file: &Path, auths: &AuthFile, domain: &str, path: &str) -> Result<Option<Found>, String> {
    let helped = |login, helper: &str| Found {
        login,
        origin: format!("docker-credential-{helper}, named in {}", file.display()),
    };
    for key in keys(domain, path) {
        if let Some(helper) = auths.cred_helpers.get(&key).filter(|name| !name.is_empty())
            && let Some(login) = helper::get(helper, &key)?
        {
            return Ok(Some(helped(login, helper)));
        }
        // Files of older versions have URLs as keys.
        let older = || auths.auths.iter().find(|(name, _)| bare(name) == key).map(|(_, entry)| entry);
        let entry = auths.auths.get(&key).or_else(older);
        if let Some(login) = entry.map(|entry| entry.login(file)).transpose()?.flatten() {
            return Ok(Some(Found { login, origin: file.display().to_string() }));
        }
    }
    let store = &auths.creds_store;
    if !store.is_empty()
        && let Some(login) = helper::get(store, if domain == HUB { HUB_KEY } else { domain })?
    {
        return Ok(Some(helped(login, store)));
    }
    Ok(None)
}

/// Returns the keys that may hold a repository's credentials, the most specific first.
fn keys(domain: &str, path: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = path;
    while !path.is_empty() {
        keys.push(format!("{domain}/{path}"));
        path = path.rfind('/').map_or("", |slash| &path[..slash]);
    }
    keys.push(domain.to_owned());
    if domain == HUB {
        keys.extend(HUB_ALIASES.map(str::to_owned));
    }
    keys
}

impl Entry {
    fn login(&self, file: &Path) -> Result<Option<Login>, String> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Login::Bearer(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Login::Identity(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            let lax = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let bytes = GeneralPurpose::new(&STANDARD, lax).decode(self.auth.trim()).ok();
            let text = bytes.and_then(|b| String::from_utf8(b).ok());
            let pair = text.as_deref().and_then(|t| t.split_once(':'));
            let (user, password) =
                pair.ok_or_else(|| format!("{} has an `auth` that is not USER:PASSWORD in base64", file.display()))?;
            // Docker pads passwords with NUL bytes.
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Login::Password { user: user.to_owned(), password }));
        }
        if !self.username.is_empty() {
            let login = Login::Password { user: self.username.clone(), password: self.password.clone() };
            return Ok(Some(login));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_of(json: &str, domain: &str, path: &str) -> Result<Option<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        fs::write(&file, json).unwrap();
        let sources = Sources { usual_files: vec![dir.path().join("none"), file], ..Sources::default() };
        Ok(find(&sources, domain, path)?.map(|found| match found.login {
            Login::Password { user, password } => format!("{user}:{password}"),
            Login::Identity(token) => format!("identity {token}"),
            Login::Bearer(token) => format!("bearer {token}"),
        }))
    }

    #[test]
    fn the_longest_key_wins() {
        let json = r#"{"auths":{"reg.example":{"auth":"YTpi"},"reg.example/team":{"auth":"Yzpk"},
            "https://index.docker.io/v1/":{"auth":"ZTpm"},"https://old.example/v1/":{"username":"u","password":"p"},
            "reg.example/team/app":{},"id.example":{"identitytoken":"t"}}}"#;
        for (domain, path, want) in [
            ("reg.example", "other/app", Some("a:b")),
            ("reg.example", "team/app", Some("c:d")),
            ("reg.example", "teamster", Some("a:b")),
            ("docker.io", "library/alpine", Some("e:f")),
            ("index.docker.io", "", Some("e:f")),
            ("old.example", "x", Some("u:p")),
            ("id.example", "x", Some("identity t")),
            ("nowhere.example", "x", None),
        ] {
            assert_eq!(user_of(json, domain, path).unwrap().as_deref(), want, "{domain}/{path}");
        }
    }

    #[test]
    fn bad_files_are_named_and_not_quoted() {
        let error = user_of(r#"{"auths":{"a":{"auth":"c2VjcmV0"}}}"#, "a", "b").unwrap_err();
        assert!(error.contains("auth.json") && !error.contains("c2VjcmV0"), "{error}");
        let error = user_of(r#"{"auths":"c2VjcmV0"}"#, "a", "b").unwrap_err();
        assert!(error.contains("line 1") && !error.contains("c2VjcmV0"), "{error}");
        let missing = Sources { file: Some("/nowhere/auth.json".into()), ..Sources::default() };
        assert!(find(&missing, "a", "b").err().unwrap().contains("/nowhere/auth.json"));
        let given = Sources {
            given: Some(Given { user: "me".into(), password: "a:b".into(), origin: "--creds".into() }),
            ..missing
        };
        assert!(
            matches!(find(&given, "a", "b"), Ok(Some(Found { login: Login::Password { password, .. }, .. })) if password == "a:b")
        );
    }
}

//! Where credentials come from: what the caller was given, podman's and Docker's files, and credential helpers.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Docker's name for its own registry in files and helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What Docker calls its registry. No server of that name serves images.
pub(super) const HUB: &str = "docker.io";
/// More bytes than this are no file of credentials.
const FILE_CAP: u64 = 4 << 20;

/// Where to look, in this order. Plain data: the environment is the caller's business.
#[derive(Clone, Default)]
pub struct Sources {
    /// `USER[:PASSWORD]`, given for this one time.
    pub given: Option<String>,
    /// The one file that was named. It must be there, and no other is read.
    pub file: Option<PathBuf>,
    /// Files that may be there.
    pub usual_files: Vec<PathBuf>,
}

/// What proves who somebody is. Never printed: it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token.
    Identity(String),
    /// A token to be shown as it is.
    Bearer(String),
}

/// Credentials with where they were found.
#[derive(Clone)]
pub(super) struct Found {
    /// The credentials.
    pub login: Login,
    /// `--creds`, a file or a helper.
    pub origin: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
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

/// The credentials for a repository, or none. An error is one line naming the file or helper at fault.
pub(super) fn find(sources: &Sources, domain: &str, path: &str) -> Result<Option<Found>, String> {
    if let Some(given) = &sources.given {
        let (user, password) = given.split_once(':').unwrap_or((given, ""));
        let login = Login::Password { user: user.to_owned(), password: password.to_owned() };
        return Ok(Some(Found { login, origin: "--creds".into() }));
    }
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

fn read(file: &Path) -> Result<AuthFile, String> {
    let name = file.display();
    let cannot = |e: io::Error| format!("cannot read credentials from {name}: {}", crate::sys::describe(&e));
    if fs::metadata(file).map_err(cannot)?.len() > FILE_CAP {
        return Err(format!("{name} is too long for a file of credentials"));
    }
    let bytes = fs::read(file).map_err(cannot)?;
    if bytes.trim_ascii().is_empty() {
        return Ok(AuthFile::default());
    }
    // The parser's message could quote a secret: only the place is said.
    serde_json::from_slice(&bytes)
        .map_err(|e| format!("{name} is no file of credentials (line {}, column {})", e.line(), e.column()))
}

fn in_file(file: &Path, auths: &AuthFile, domain: &str, path: &str) -> Result<Option<Found>, String> {
    for key in keys(domain, path) {
        let origin = || file.display().to_string();
        if let Some(helper) = auths.cred_helpers.get(&key)
            && let Some(login) = ask(helper, helper_key(domain, &key))?
        {
            return Ok(Some(Found { login, origin: format!("docker-credential-{helper}, named in {}", origin()) }));
        }
        // Older files have URLs for keys.
        let entry = auths.auths.iter().find(|(name, _)| **name == key || bare(name) == key);
        if let Some(login) = entry.map(|(_, entry)| entry.login(file)).transpose()?.flatten() {
            return Ok(Some(Found { login, origin: origin() }));
        }
    }
    if !auths.creds_store.is_empty()
        && let Some(login) = ask(&auths.creds_store, helper_key(domain, domain))?
    {
        let origin = format!("docker-credential-{}, named in {}", auths.creds_store, file.display());
        return Ok(Some(Found { login, origin }));
    }
    Ok(None)
}

/// The keys that may hold a repository's credentials, the most special first.
fn keys(domain: &str, path: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut name = format!("{domain}/{path}");
    while let Some(slash) = name.rfind('/') {
        keys.push(name.clone());
        name.truncate(slash);
    }
    keys.push(domain.to_owned());
    if domain == HUB {
        keys.extend(["index.docker.io".to_owned(), HUB_KEY.to_owned()]);
    }
    keys
}

fn helper_key<'a>(domain: &str, key: &'a str) -> &'a str {
    if domain == HUB { HUB_KEY } else { key }
}

/// A key without what older versions wrote around the host.
fn bare(key: &str) -> &str {
    match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    }
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
                pair.ok_or_else(|| format!("{} holds an `auth` that is no user and password", file.display()))?;
            // Docker pads with zeros.
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

/// Asks `docker-credential-NAME` for what it keeps under `key`.
fn ask(name: &str, key: &str) -> Result<Option<Login>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let program = format!("docker-credential-{name}");
    if name.is_empty() || name.contains('/') {
        return Err(format!("`{}` is no name of a credential helper", name.escape_debug()));
    }
    let failed = |e: io::Error| format!("cannot run {program}: {}", crate::sys::describe(&e));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input still says how it ended.
        let _unread = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let line = said.lines().next().unwrap_or_default().escape_debug().to_string();
        return Err(format!("{program} failed for {key}: {line}"));
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| format!("{program} gives no credentials for {key}"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        ("<token>", secret) => Some(Login::Identity(secret)),
        (user, secret) => Some(Login::Password { user: user.to_owned(), password: secret }),
    })
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
        let given = Sources { given: Some("me:a:b".into()), ..missing };
        assert!(
            matches!(find(&given, "a", "b"), Ok(Some(Found { login: Login::Password { password, .. }, .. })) if password == "a:b")
        );
    }
}

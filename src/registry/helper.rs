//! Credential helpers: runs `docker-credential-NAME` to get, store, erase and list credentials.

use super::identity::Login;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Message of a credential helper that has no credentials for a key.
const NOT_FOUND: &str = "credentials not found";

/// Gets the credentials that `docker-credential-NAME` holds for `key`.
pub(super) fn get(name: &str, key: &str) -> Result<Option<Login>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let output = match run(name, "get", key.as_bytes())? {
        Ok(output) => output,
        Err(said) if said.contains(NOT_FOUND) => return Ok(None),
        Err(said) => return Err(format!("docker-credential-{name} failed for {key}: {said}")),
    };
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| format!("docker-credential-{name} returned no credentials for {key}"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        ("<token>", secret) => Some(Login::Identity(secret)),
        (user, secret) => Some(Login::Password { user: user.to_owned(), password: secret }),
    })
}

/// Stores a user name and a password for `key` in `docker-credential-NAME`.
pub(super) fn store(name: &str, key: &str, user: &str, password: &str) -> Result<(), String> {
    let entry = json!({"ServerURL": key, "Username": user, "Secret": password}).to_string();
    let said = match run(name, "store", entry.as_bytes())? {
        Ok(_) => return Ok(()),
        Err(said) => said,
    };
    // A helper's message may quote its input, which holds the password.
    let said = if said.contains(password) { "(message hidden: it contains the password)".to_owned() } else { said };
    Err(format!("docker-credential-{name} cannot store the credentials for {key}: {said}"))
}

/// Erases the credentials for `key` from `docker-credential-NAME`, if there are any.
pub(super) fn erase(name: &str, key: &str) -> Result<(), String> {
    match run(name, "erase", key.as_bytes())? {
        Err(said) if !said.contains(NOT_FOUND) => {
            Err(format!("docker-credential-{name} cannot erase the credentials for {key}: {said}"))
        }
        _ => Ok(()),
    }
}

/// Lists the keys for which `docker-credential-NAME` holds credentials.
pub(super) fn list(name: &str) -> Result<Vec<String>, String> {
    let output = run(name, "list", b"")?.map_err(|said| format!("docker-credential-{name} cannot list: {said}"))?;
    let all: BTreeMap<String, String> =
        serde_json::from_slice(&output).map_err(|_| format!("docker-credential-{name} returned no list"))?;
    Ok(all.into_keys().collect())
}

/// Runs the helper; returns its output, or the first line of its error message.
fn run(name: &str, verb: &str, input: &[u8]) -> Result<Result<Vec<u8>, String>, String> {
    let program = format!("docker-credential-{name}");
    if name.is_empty() || name.contains('/') {
        return Err(format!("`{}` is not a valid name of a credential helper", name.escape_debug()));
    }
    let failed = |e: io::Error| format!("cannot run {program}: {}", crate::sys::describe(&e));
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper may exit without reading its input; its exit status decides.
        let _unread = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(Ok(output.stdout));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(Err(said.lines().next().unwrap_or_default().escape_debug().to_string()))
}

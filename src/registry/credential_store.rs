//! Credential storage: writes and removes logins in auth.json (podman) and config.json (Docker), or in credential
//! helpers.
//!
//! A file is replaced as a whole, under a flock on the old file: programs that honour the lock never undo each other's
//! changes, and readers never see a partial file. Everything else in the file is kept.

use super::credentials::{self, AuthFile, Given};
use super::helper;
use super::identity::Account;
use super::identity::HUB_KEY;
use crate::sys;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Maximum number of symbolic links followed from a file's name, against loops.
const LINKS: usize = 40;
/// Name of Docker's credential file.
const DOCKERS: &str = "config.json";

/// Where credentials were stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// In the file, in plain text.
    File,
    /// In the credential helper `docker-credential-NAME`.
    Helper(String),
}

/// Stores the credentials for an account in the file, or in the credential helper that the file names for the account.
/// Replaces the account's former credentials. An error is one line; the file is then unchanged.
pub fn keep(file: &Path, account: &Account, login: &Given) -> Result<Kept, String> {
    let now = if file.exists() { credentials::read(file)? } else { AuthFile::default() };
    let Some((helper, key)) = helper_of(&now, account) else {
        let auth = BASE64_STANDARD.encode(format!("{}:{}", login.user, login.password));
        edit(file, |auths| put(file, auths, account, &auth))?;
        return Ok(Kept::File);
    };
    helper::store(&helper, &key, &login.user, &login.password)?;
    // A copy in the file would take precedence, and would be in plain text.
    if has(file, account)? {
        edit(file, |auths| remove_entry(auths, account))?;
    }
    Ok(Kept::Helper(helper))
}

/// Removes the account's credentials from the file, or from the credential helper that it names. Returns whether there
/// were any.
pub fn forget(file: &Path, account: &Account) -> Result<bool, String> {
    if !file.exists() {
        return Ok(false);
    }
    let mut found = false;
    if let Some((helper, key)) = helper_of(&credentials::read(file)?, account)
        && helper::get(&helper, &key)?.is_some()
    {
        helper::erase(&helper, &key)?;
        found = true;
    }
    if has(file, account)? {
        edit(file, |auths| remove_entry(auths, account))?;
        found = true;
    }
    Ok(found)
}

/// Removes all credentials from the file and from the credential helpers that it names.
pub fn forget_all(file: &Path) -> Result<(), String> {
    if !file.exists() {
        return Ok(());
    }
    let AuthFile { cred_helpers, creds_store, .. } = credentials::read(file)?;
    for (key, helper) in cred_helpers.iter().filter(|(_, helper)| !helper.is_empty()) {
        helper::erase(helper, key)?;
    }
    if !creds_store.is_empty() {
        for key in helper::list(&creds_store)? {
            helper::erase(&creds_store, &key)?;
        }
    }
    edit(file, Map::clear)
}

/// Returns the credential helper for the account, and the account's key in it.
fn helper_of(auths: &AuthFile, account: &Account) -> Option<(String, String)> {
    let named = account.keys().into_iter().find_map(|key| Some((auths.cred_helpers.get(&key)?.clone(), key)));
    let general = || {
        // Credential helpers do not know namespaces.
        let key = if account.is_hub() { HUB_KEY.to_owned() } else { account.to_string() };
        account.path().is_empty().then(|| (auths.creds_store.clone(), key))
    };
    named.or_else(general).filter(|(helper, _)| !helper.is_empty())
}

/// Whether the file itself holds credentials for the account.
fn has(file: &Path, account: &Account) -> Result<bool, String> {
    let whole = parse(file, &credentials::read_bytes(file)?)?;
    let auths = whole.get("auths").and_then(Value::as_object);
    Ok(auths.is_some_and(|auths| auths.keys().any(|key| account.is_meant_by(key))))
}

fn put(file: &Path, auths: &mut Map<String, Value>, account: &Account, auth: &str) {
    let is_dockers = file.file_name().is_some_and(|name| name == DOCKERS);
    let key = if account.is_hub() && is_dockers { HUB_KEY.to_owned() } else { account.to_string() };
    auths.retain(|known, _| *known == key || !account.is_meant_by(known));
    let entry = auths.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    if let Value::Object(entry) = entry {
        entry.retain(|name, _| !["username", "password", "identitytoken", "registrytoken"].contains(&name.as_str()));
        entry.insert("auth".into(), auth.into());
    }
}

fn remove_entry(auths: &mut Map<String, Value>, account: &Account) {
    auths.retain(|known, _| !account.is_meant_by(known));
}

/// Edits the `auths` object of the file.
fn edit(file: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), String> {
    let cannot = |e: io::Error| format!("cannot write credentials to {}: {}", file.display(), sys::describe(&e));
    let place = followed(file).map_err(cannot)?;
    let folder = match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
    let lock = locked(&place, folder).map_err(cannot)?;
    let mut whole = parse(file, &credentials::read_bytes(&place)?)?;
    let auths = whole.entry("auths").or_insert_with(|| json!({}));
    if auths.is_null() {
        *auths = json!({});
    }
    let Value::Object(auths) = auths else {
        return Err(format!("{} is not a credentials file: its `auths` is not an object", file.display()));
    };
    change(auths);
    replace(&lock, &place, folder, &Value::Object(whole)).map_err(cannot)
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>, String> {
    if bytes.trim_ascii().is_empty() { Ok(Map::new()) } else { credentials::parse(file, bytes) }
}

/// Resolves the symbolic links of a file name, whether or not the target exists.
fn followed(file: &Path) -> io::Result<PathBuf> {
    let mut place = file.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("")).join(target),
            // Not a symbolic link, or no such file.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => return Ok(place),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Opens and locks the file at `place`; creates it if missing.
fn locked(place: &Path, folder: &Path) -> io::Result<File> {
    loop {
        let file = match OpenOptions::new().read(true).write(true).open(place) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut new = NamedTempFile::new_in(folder)?;
                new.write_all(b"{}")?;
                match new.persist_noclobber(place) {
                    Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => return Err(e.error),
                    _ => continue,
                }
            }
            Err(e) => return Err(e),
        };
        file.lock()?;
        // The former holder of the lock may have replaced the file.
        let (mine, now) = (file.metadata()?, fs::metadata(place));
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (mine.dev(), mine.ino())) {
            return Ok(file);
        }
    }
}

/// Replaces the old file by a new one with mode 0600; keeps the owner if that is another user.
fn replace(old: &File, place: &Path, folder: &Path, whole: &Value) -> io::Result<()> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    serde::Serialize::serialize(whole, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    bytes.push(b'\n');
    // Created with mode 0600.
    let mut new = NamedTempFile::new_in(folder)?;
    new.write_all(&bytes)?;
    let (was, is) = (old.metadata()?, new.as_file().metadata()?);
    if (was.uid(), was.gid()) != (is.uid(), is.gid()) {
        fchown(new.as_file(), Some(was.uid()), Some(was.gid()))?;
    }
    new.as_file().sync_all()?;
    new.persist(place).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;

    fn login(password: &str) -> Given {
        Given { user: "me".into(), password: password.into(), origin: "the test".into() }
    }

    fn account(text: &str) -> Account {
        text.parse().unwrap()
    }

    fn json_of(file: &Path) -> Value {
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    #[test]
    fn everything_else_in_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let before = json!({"z": [1.50, null], "auths": {
            "b.example": {"auth": "YTpi"},
            "https://a.example/v1/": {"identitytoken": "old"},
            "a.example": {"identitytoken": "old", "email": "me@a"},
            "a.example/team": {"auth": "YTpi"}}, "credHelpers": {"c.example": ""}, "a": {"b": {}}});
        fs::write(&file, before.to_string()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(keep(&file, &account("a.example"), &login("pw")), Ok(Kept::File));
        let mut want = before;
        want["auths"].as_object_mut().unwrap().remove("https://a.example/v1/");
        want["auths"]["a.example"] = json!({"email": "me@a", "auth": "bWU6cHc="});
        assert_eq!(json_of(&file), want);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("{\n\t\"z\": [\n") && text.contains("1.5,"), "{text}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(keep(&file, &account("c.example"), &login("pw")), Ok(Kept::File), "the empty helper is the file");
        assert_eq!(forget(&file, &account("a.example")), Ok(true));
        assert_eq!(forget(&file, &account("a.example")), Ok(false));
        assert!(json_of(&file)["auths"].get("a.example/team").is_some());
        assert_eq!(forget_all(&file), Ok(()));
        assert_eq!((json_of(&file)["auths"].clone(), json_of(&file)["z"].clone()), (json!({}), json!([1.5, null])));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left beside the file");
    }

    #[test]
    fn docker_hub_by_the_name_that_the_file_s_readers_look_for() {
        let dir = tempfile::tempdir().unwrap();
        for (name, key) in [("config.json", HUB_KEY), ("auth.json", "docker.io")] {
            let file = dir.path().join(name);
            fs::write(&file, json!({"auths": {"index.docker.io": {"auth": "YTpi"}}}).to_string()).unwrap();
            keep(&file, &Account::hub(), &login("pw")).unwrap();
            assert_eq!(json_of(&file), json!({"auths": {key: {"auth": "bWU6cHc="}}}));
        }
    }

    #[test]
    fn links_are_followed_and_folders_made() {
        let dir = tempfile::tempdir().unwrap();
        let (link, place) = (dir.path().join("link"), dir.path().join("new/folder/auth.json"));
        symlink("new/folder/auth.json", &link).unwrap();
        keep(&link, &account("a.example"), &login("pw")).unwrap();
        assert!(link.is_symlink() && place.is_file());
        assert_eq!(fs::metadata(dir.path().join("new")).unwrap().permissions().mode() & 0o777, 0o700);
        let circle = dir.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(keep(&circle, &account("a.example"), &login("pw")).unwrap_err().contains("circle"));
    }

    #[test]
    fn what_is_no_file_of_credentials_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        for bad in ["[]", "{", r#"{"auths": "c2VjcmV0"}"#, r#"{"auths": [1]}"#] {
            fs::write(&file, bad).unwrap();
            let error = keep(&file, &account("a.example"), &login("pw")).unwrap_err();
            assert!(error.contains("is not a credentials file") && !error.contains("c2VjcmV0"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
        for empty in ["", "\n", r#"{"auths": null}"#] {
            fs::write(&file, empty).unwrap();
            keep(&file, &account("a.example"), &login("pw")).unwrap();
        }
    }

    #[test]
    fn of_many_at_once_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        thread::scope(|scope| {
            for n in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for m in 0..8 {
                        keep(file, &account(&format!("r{n}-{m}.example")), &login("pw")).unwrap();
                    }
                });
            }
        });
        assert_eq!(json_of(&file)["auths"].as_object().unwrap().len(), 64);
    }
}

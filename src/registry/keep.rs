//! Writing credentials down and striking them out, in files that podman and Docker read too.
//!
//! A file is replaced whole, under a lock on what it replaces: of two programs that keep to the lock none undoes what the
//! other did, and no reader ever sees half of one. What is in the file besides stays as it is.

use super::account::Account;
use super::credentials::{self, AuthFile, Given, HUB_KEY};
use super::helper;
use crate::sys;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Links followed from a file's name before it is taken for a circle.
const LINKS: usize = 40;
/// What Docker calls its file.
const DOCKERS: &str = "config.json";

/// Where credentials were put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// In the file, for everybody to read who may read it.
    File,
    /// With `docker-credential-NAME`.
    Helper(String),
}

/// Keeps the credentials for an account in the file, or with the helper that the file names for it. What the file had for
/// the account before is gone. An error is one line and leaves the file as it was.
pub fn keep(file: &Path, account: &Account, login: &Given) -> Result<Kept, String> {
    let now = if file.exists() { credentials::read(file)? } else { AuthFile::default() };
    let Some((helper, key)) = helper_of(&now, account) else {
        let auth = BASE64_STANDARD.encode(format!("{}:{}", login.user, login.password));
        edit(file, |auths| put(file, auths, account, &auth))?;
        return Ok(Kept::File);
    };
    helper::store(&helper, &key, &login.user, &login.password)?;
    // What stands in the file would be found first, or by whoever steals the file.
    if has(file, account)? {
        edit(file, |auths| strike(auths, account))?;
    }
    Ok(Kept::Helper(helper))
}

/// Forgets what the file, or the helper that it names for it, keeps for the account. Says whether there was anything.
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
        edit(file, |auths| strike(auths, account))?;
        found = true;
    }
    Ok(found)
}

/// Forgets everything that the file and the helpers that it names keep.
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

/// The helper that keeps the account's credentials, and the key it keeps them under.
fn helper_of(auths: &AuthFile, account: &Account) -> Option<(String, String)> {
    let named = account.keys().into_iter().find_map(|key| Some((auths.cred_helpers.get(&key)?.clone(), key)));
    let general = || {
        // No helper knows namespaces by itself.
        let key = if account.is_hub() { HUB_KEY.to_owned() } else { account.to_string() };
        account.path().is_empty().then(|| (auths.creds_store.clone(), key))
    };
    named.or_else(general).filter(|(helper, _)| !helper.is_empty())
}

/// Whether the file itself has something for the account.
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

fn strike(auths: &mut Map<String, Value>, account: &Account) {
    auths.retain(|known, _| !account.is_meant_by(known));
}

/// Changes what the file holds under `auths`.
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
        return Err(format!("{} is no file of credentials: its `auths` are no object", file.display()));
    };
    change(auths);
    replace(&lock, &place, folder, &Value::Object(whole)).map_err(cannot)
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>, String> {
    if bytes.trim_ascii().is_empty() { Ok(Map::new()) } else { credentials::parse(file, bytes) }
}

/// Where the name leads through symbolic links, whether or not something is there.
fn followed(file: &Path) -> io::Result<PathBuf> {
    let mut place = file.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("")).join(target),
            // It is none, or there is nothing.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => return Ok(place),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("its links go round in a circle"))
}

/// Locks the file that stands at `place`; makes one where there is none.
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
        // Whoever held the lock before may have put another file here.
        let (mine, now) = (file.metadata()?, fs::metadata(place));
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (mine.dev(), mine.ino())) {
            return Ok(file);
        }
    }
}

/// Puts a new file in the place of the old one: this user's alone to read, or its owner's where that is somebody else.
fn replace(old: &File, place: &Path, folder: &Path, whole: &Value) -> io::Result<()> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    serde::Serialize::serialize(whole, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    bytes.push(b'\n');
    // Made with mode 0600.
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
            assert!(error.contains("is no file of credentials") && !error.contains("c2VjcmV0"), "{error}");
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

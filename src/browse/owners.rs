//! Names of users and groups, from the image's own /etc/passwd and /etc/group (passwd(5), group(5)).

use super::path::resolve;
use crate::fs::Fs;
use crate::meta::Kind;
use std::collections::HashMap;

/// The most bytes that are read of each file: an image must not make plyfs read gigabytes.
const LIMIT: u32 = 1 << 20;

/// Names by ID. An ID without a name is shown as a number.
#[derive(Default)]
pub struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    /// Reads the names that a file system has. Files that are missing or malformed have none.
    pub fn of(fs: &Fs) -> Owners {
        Owners { users: names(fs, b"etc/passwd"), groups: names(fs, b"etc/group") }
    }

    /// Returns a user's name, or its number.
    pub fn user(&self, id: u32) -> String {
        self.users.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// Returns a group's name, or its number.
    pub fn group(&self, id: u32) -> String {
        self.groups.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// Whether a user has a name.
    pub fn has_user(&self, id: u32) -> bool {
        self.users.contains_key(&id)
    }

    /// Whether a group has a name.
    pub fn has_group(&self, id: u32) -> bool {
        self.groups.contains_key(&id)
    }

    /// Returns the ID of a user by name or number.
    pub fn user_id(&self, text: &str) -> Option<u32> {
        id_of(&self.users, text)
    }

    /// Returns the ID of a group by name or number.
    pub fn group_id(&self, text: &str) -> Option<u32> {
        id_of(&self.groups, text)
    }
}

fn id_of(names: &HashMap<u32, String>, text: &str) -> Option<u32> {
    names.iter().find(|(_, name)| *name == text).map(|(id, _)| *id).or_else(|| text.parse().ok())
}

/// Reads lines of `name:password:ID:...`; the first name of an ID counts, as for getpwuid(3).
fn names(fs: &Fs, path: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    let Some(file) = resolve(fs, path, true).ok().filter(|file| file.kind == Kind::File) else { return names };
    let Ok(bytes) = fs.read(file.ino, 0, LIMIT) else { return names };
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, id) = (fields.next(), fields.nth(1));
        if let (Some(Ok(name)), Some(Ok(id))) = (name.map(str::from_utf8), id.map(str::from_utf8))
            && let Ok(id) = id.parse()
        {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

//! Installed packages, from the databases of dpkg (dpkg(1), /var/lib/dpkg/status) and apk (/lib/apk/db/installed).

use super::entries::entries;
use super::path::resolve;
use crate::fs::Fs;
use crate::meta::Kind;
use std::collections::BTreeMap;

/// The most bytes that are read of a database: an image must not make plyfs read gigabytes.
const LIMIT: u64 = 64 << 20;
/// The most bytes that one read returns.
const PIECE: u32 = 1 << 20;

/// Versions by package name; with an architecture, as in `libc6:amd64`, where the database has one.
pub type Packages = BTreeMap<String, String>;

/// A package whose version differs: its name, the version before, and the version now.
pub type Upgrade = (String, Option<String>, Option<String>);

/// Reads the packages that an image has installed. A database that is missing or malformed has none.
pub fn packages(fs: &Fs) -> Packages {
    let mut found = Packages::new();
    if let Some(text) = text(fs, b"var/lib/dpkg/status") {
        dpkg(&text, false, &mut found);
    }
    // Images without dpkg itself have one file for each package.
    if let Ok(dir) = resolve(fs, b"var/lib/dpkg/status.d", true)
        && dir.kind == Kind::Dir
    {
        let files =
            entries(fs, &dir).unwrap_or_default().into_iter().filter(|entry| !entry.name.ends_with(b".md5sums"));
        for entry in files {
            if let Some(text) = text(fs, &[b"var/lib/dpkg/status.d/", &entry.name[..]].concat()) {
                dpkg(&text, true, &mut found);
            }
        }
    }
    for path in [&b"lib/apk/db/installed"[..], b"usr/lib/apk/db/installed"] {
        if let Some(text) = text(fs, path) {
            apk(&text, &mut found);
        }
    }
    found
}

/// Returns the packages whose versions differ.
pub fn upgrades(old: &Packages, new: &Packages) -> Vec<Upgrade> {
    let mut found = Vec::new();
    for (name, version) in old {
        if new.get(name) != Some(version) {
            found.push((name.clone(), Some(version.clone()), new.get(name).cloned()));
        }
    }
    let added = new.iter().filter(|(name, _)| !old.contains_key(*name));
    found.extend(added.map(|(name, version)| (name.clone(), None, Some(version.clone()))));
    found.sort();
    found
}

fn text(fs: &Fs, path: &[u8]) -> Option<String> {
    let file = resolve(fs, path, true).ok().filter(|file| file.kind == Kind::File)?;
    let (size, mut bytes) = (file.size.min(LIMIT), Vec::new());
    while (bytes.len() as u64) < size {
        let piece = fs.read(file.ino, bytes.len() as u64, PIECE).ok()?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads paragraphs of `Field: value`. `all`: also those without a status.
fn dpkg(text: &str, all: bool, found: &mut Packages) {
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            let lines = paragraph.lines().filter_map(|line| line.split_once(':'));
            lines.into_iter().find(|(field, _)| *field == name).map(|(_, value)| value.trim())
        };
        let is_installed = field("Status").map_or(all, |status| status.ends_with(" installed"));
        if let (true, Some(name), Some(version)) = (is_installed, field("Package"), field("Version")) {
            let is_foreign = field("Multi-Arch") == Some("same");
            let name = match field("Architecture").filter(|_| is_foreign) {
                Some(architecture) => format!("{name}:{architecture}"),
                None => name.to_owned(),
            };
            found.insert(name, version.to_owned());
        }
    }
}

/// Reads paragraphs of `P:name` and `V:version`.
fn apk(text: &str, found: &mut Packages) {
    for paragraph in text.split("\n\n") {
        let field = |letter: &str| paragraph.lines().find_map(|line| line.strip_prefix(letter));
        if let (Some(name), Some(version)) = (field("P:"), field("V:")) {
            found.insert(name.to_owned(), version.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_are_read() {
        let mut found = Packages::new();
        let status = "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: libc6\nStatus: install ok installed\nMulti-Arch: same\nArchitecture: amd64\nVersion: 2.36\n";
        dpkg(status, false, &mut found);
        dpkg("Package: tzdata\nVersion: 2024a\n", true, &mut found);
        apk("C:x\nP:musl\nV:1.2.4-r2\nA:x86_64\n\nP:busybox\nV:1.36\n", &mut found);
        let expected = [
            ("bash", "5.2-1"),
            ("busybox", "1.36"),
            ("libc6:amd64", "2.36"),
            ("musl", "1.2.4-r2"),
            ("tzdata", "2024a"),
        ];
        assert_eq!(found, expected.map(|(name, version)| (name.to_owned(), version.to_owned())).into());
    }

    #[test]
    fn versions_that_differ_are_found() {
        let of = |all: &[(&str, &str)]| all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let found = upgrades(&of(&[("a", "1"), ("b", "1"), ("c", "1")]), &of(&[("b", "2"), ("c", "1"), ("d", "1")]));
        let text = |text: &str| Some(text.to_owned());
        let expected = [("a", text("1"), None), ("b", text("1"), text("2")), ("d", None, text("1"))];
        assert_eq!(found, expected.map(|(name, old, new)| (name.to_owned(), old, new)));
    }
}

//! Registry mirrors, rewritten locations and blocked registries, from containers-registries.conf(5).

use crate::reference::Reference;
use serde::Deserialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Largest configuration file, in bytes.
const FILE_CAP: u64 = 1 << 20;

/// Paths of the configuration files. Plain data: callers read the environment.
#[derive(Clone, Default)]
pub struct Sources {
    /// The main file, which may be missing.
    pub file: Option<PathBuf>,
    /// Drop-in folders, which may be missing. Their `*.conf` files are read after the main file, folder by folder,
    /// sorted by name; a later entry replaces an earlier one with the same prefix.
    pub folders: Vec<PathBuf>,
}

/// Location of a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// `HOST[:PORT]`.
    pub domain: String,
    /// Repository path at that registry.
    pub path: String,
    /// Whether plain http and unverified certificates are allowed.
    pub insecure: bool,
}

/// All locations of a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Places {
    /// Mirrors, in the order in which they are read.
    pub mirrors: Vec<Place>,
    /// The registry's own location.
    pub own: Place,
}

#[derive(Deserialize, Default)]
struct Parsed {
    #[serde(default, rename = "registry")]
    all: Vec<Entry>,
    #[serde(default, rename = "registries")]
    old: Old,
}

/// Version 1 of the format, with its lists of registries.
#[derive(Deserialize, Default)]
struct Old {
    #[serde(default)]
    insecure: OldList,
    #[serde(default)]
    block: OldList,
}

#[derive(Deserialize, Default)]
struct OldList {
    #[serde(default)]
    registries: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    /// File that holds the entry.
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Pulls,
}

/// Which pulls a mirror serves (`pull-from-mirror`).
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
enum Pulls {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// Returns the locations of the reference's repository. An error is one line that names the file at fault, or the file
/// that blocks the repository.
pub(super) fn find(sources: &Sources, reference: &Reference) -> Result<Places, String> {
    let entries = read_all(sources)?;
    let name = reference.to_string();
    let fitting = entries.iter().filter_map(|entry| Some((covered(&entry.prefix, &name)?, entry)));
    let Some((covers, entry)) = fitting.max_by_key(|(covers, _)| *covers) else {
        let own = Place { domain: reference.domain().into(), path: reference.path().into(), insecure: false };
        return Ok(Places { mirrors: Vec::new(), own });
    };
    if entry.blocked {
        return Err(format!("{} is blocked in {}", entry.prefix, entry.file.display()));
    }
    let by_digest = reference.digest().is_some();
    let serves = |mirror: &&Mirror| match mirror.pull_from_mirror {
        Pulls::All => by_digest || !entry.mirror_by_digest_only,
        Pulls::DigestOnly => by_digest,
        Pulls::TagOnly => !by_digest,
    };
    let place = |location: &str, insecure| {
        let moved = place(location, &name, covers, insecure);
        moved.ok_or_else(|| format!("{}: location `{location}` is invalid for {name}", entry.file.display()))
    };
    let mirrors = entry.mirror.iter().filter(serves).map(|mirror| place(&mirror.location, mirror.insecure));
    Ok(Places { mirrors: mirrors.collect::<Result<_, _>>()?, own: place(&entry.location, entry.insecure)? })
}

/// A configured registry, or part of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configured {
    /// What names begin with that the entry is for.
    pub prefix: String,
    /// Where their repositories are; the prefix if the entry rewrites nothing.
    pub location: String,
    /// Whether plain http and unverified certificates are allowed.
    pub is_insecure: bool,
    /// Whether access is blocked.
    pub is_blocked: bool,
    /// Locations of the mirrors, in the order in which they are read.
    pub mirrors: Vec<String>,
}

/// Lists the configured registries. An error is one line that names the file at fault.
pub fn configured(sources: &Sources) -> Result<Vec<Configured>, String> {
    let describe = |entry: Entry| Configured {
        location: if entry.location.is_empty() { entry.prefix.clone() } else { entry.location },
        prefix: entry.prefix,
        is_insecure: entry.insecure,
        is_blocked: entry.blocked,
        mirrors: entry.mirror.into_iter().map(|mirror| mirror.location).collect(),
    };
    Ok(read_all(sources)?.into_iter().map(describe).collect())
}

/// Returns how many bytes of an image's name the prefix covers, if it matches.
fn covered(prefix: &str, name: &str) -> Option<usize> {
    if let Some(parent) = prefix.strip_prefix('*') {
        let authority = name.split('/').next()?;
        let host = authority.split(':').next()?;
        return (host.len() > parent.len() && host.ends_with(parent)).then_some(authority.len());
    }
    let rest = name.strip_prefix(prefix)?;
    // After a host, a colon starts a port, which makes it another registry.
    let ends = rest.is_empty() || rest.starts_with('/') || (prefix.contains('/') && rest.starts_with([':', '@']));
    ends.then_some(prefix.len())
}

/// Replaces the first `covers` bytes of an image's name by the location.
fn place(location: &str, name: &str, covers: usize, insecure: bool) -> Option<Place> {
    let moved = if location.is_empty() { name.to_owned() } else { format!("{location}{}", name.get(covers..)?) };
    let (domain, rest) = moved.split_once('/')?;
    let path = rest.split([':', '@']).next().unwrap_or_default();
    (!domain.is_empty() && !path.is_empty()).then(|| Place { domain: domain.into(), path: path.into(), insecure })
}

fn read_all(sources: &Sources) -> Result<Vec<Entry>, String> {
    let mut files: Vec<PathBuf> = sources.file.iter().cloned().collect();
    for folder in &sources.folders {
        files.extend(confs(folder)?);
    }
    let mut all: Vec<Entry> = Vec::new();
    for file in files {
        for entry in read(&file)? {
            all.retain(|known| known.prefix != entry.prefix || known.file == entry.file);
            all.push(entry);
        }
    }
    Ok(all)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn cannot(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {}", path.display(), crate::sys::describe(error))
}

/// Lists the folder's `*.conf` files, sorted by name.
fn confs(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if is_missing(&e) => return Ok(Vec::new()),
        Err(e) => return Err(cannot(folder, &e)),
    };
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(|e| cannot(folder, &e))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "conf") && path.is_file());
    paths.sort();
    Ok(paths)
}

fn read(file: &Path) -> Result<Vec<Entry>, String> {
    let length = match fs::metadata(file) {
        Ok(found) => found.len(),
        Err(e) if is_missing(&e) => return Ok(Vec::new()),
        Err(e) => return Err(cannot(file, &e)),
    };
    if length > FILE_CAP {
        return Err(format!("{} is too large for a registries.conf file", file.display()));
    }
    let text = fs::read_to_string(file).map_err(|e| cannot(file, &e))?;
    parse(&text, file).map_err(|why| format!("{}: {why}", file.display()))
}

fn parse(text: &str, file: &Path) -> Result<Vec<Entry>, String> {
    let parsed: Parsed = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        format!("line {line}: {}", e.message().replace('\n', " "))
    })?;
    let listed = |list: OldList, insecure, blocked| {
        let entry = move |location| Entry { location, insecure, blocked, ..Entry::default() };
        list.registries.into_iter().map(entry)
    };
    let old = listed(parsed.old.insecure, true, false).chain(listed(parsed.old.block, false, true));
    let mut entries: Vec<Entry> = parsed.all.into_iter().chain(old).collect();
    for entry in &mut entries {
        clean(&mut entry.prefix)?;
        clean(&mut entry.location)?;
        if entry.prefix.is_empty() {
            entry.prefix.clone_from(&entry.location);
        }
        // Only a wildcard prefix may omit the location.
        if entry.prefix.is_empty() || (entry.location.is_empty() && !entry.prefix.starts_with("*.")) {
            return Err("a [[registry]] has no location".into());
        }
        if entry.prefix.contains('*')
            && (!entry.prefix.starts_with("*.") || entry.prefix[2..].contains(['*', '/', ':']))
        {
            return Err(format!("`{}` is not a valid prefix: a wildcard has the form *.HOST", entry.prefix));
        }
        for mirror in &mut entry.mirror {
            clean(&mut mirror.location)?;
            if mirror.location.is_empty() {
                return Err(format!("a mirror of {} has no location", entry.prefix));
            }
        }
        entry.file = file.to_owned();
    }
    Ok(entries)
}

/// Removes a trailing slash from a location. A location with a scheme is an error.
fn clean(location: &mut String) -> Result<(), String> {
    if location.contains("://") {
        return Err(format!(
            "`{location}` must have no scheme: write HOST[:PORT][/PATH], and insecure = true for http"
        ));
    }
    location.truncate(location.trim_end_matches('/').len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn found(text: &str, name: &str) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.conf");
        fs::write(&file, text).unwrap();
        let places = find(&Sources { file: Some(file), folders: vec![] }, &name.parse().unwrap())?;
        let text = |p: &Place| format!("{}/{}{}", p.domain, p.path, if p.insecure { "!" } else { "" });
        Ok(places.mirrors.iter().chain([&places.own]).map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_longest_prefix_says_where_to_go() {
        let conf = r#"
            unqualified-search-registries = ["x.example"]
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "cache.example:5000/hub/"
            insecure = true
            [[registry]]
            prefix = "a.example/team"
            location = "inside.example/t"
            [[registry.mirror]]
            location = "m1"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "m2"
            pull-from-mirror = "tag-only"
            [[registry.mirror]]
            location = "m3"
            pull-from-mirror = ""
            [[registry]]
            prefix = "a.example"
            insecure = true
            location = "a.example"
            [[registry]]
            prefix = "*.wild.example"
            [[registry.mirror]]
            location = "wild"
            [[registry]]
            prefix = "d.example"
            location = "d.example"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m"
        "#;
        let by_digest = format!("a.example/team/x@{DIGEST}");
        for (name, want) in [
            ("alpine", "cache.example:5000/hub/library/alpine! docker.io/library/alpine"),
            ("a.example/team/x:1", "m2/x m3/x inside.example/t/x"),
            (&by_digest, "m1/x m3/x inside.example/t/x"),
            ("a.example/teams/x", "a.example/teams/x!"),
            ("a.example:5000/x", "a.example:5000/x"),
            ("b.wild.example/x", "wild/x b.wild.example/x"),
            ("b.wild.example:1/x", "wild/x b.wild.example:1/x"),
            ("wild.example/x", "wild.example/x"),
            ("d.example/x:1", "d.example/x"),
            (&format!("d.example/x@{DIGEST}"), "m/x d.example/x"),
            ("other.example/x", "other.example/x"),
        ] {
            assert_eq!(found(conf, name).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn what_is_forbidden_and_what_is_wrong() {
        let blocked = "[[registry]]\nlocation = \"a.example/x\"\nblocked = true";
        assert!(found(blocked, "a.example/x:1").unwrap_err().starts_with("a.example/x is blocked in /"));
        assert!(found(blocked, "a.example/xy").is_ok());
        let old = "[registries.block]\nregistries = ['b.example']\n[registries.insecure]\nregistries = ['i.example']";
        assert!(found(old, "b.example/x").is_err());
        assert_eq!(found(old, "i.example/x").unwrap(), "i.example/x!");
        for (wrong, why) in [
            ("[[registry]]\nlocation = 1", "line 2"),
            ("[[registry]]\nlocation = \"a", "line 2"),
            ("[[registry]]\n", "no location"),
            ("[[registry]]\nprefix = \"a.example\"", "no location"),
            ("[[registry]]\nlocation = \"https://a\"", "no scheme"),
            ("[[registry]]\nprefix = \"a.*.b\"\nlocation = \"x\"", "is not a valid prefix"),
            ("[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"\"", "a mirror of a has no location"),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"x\"",
                "line 5",
            ),
            ("[[registry]]\nprefix = \"a.example/x\"\nlocation = \"b\"", "location `b` is invalid for a.example/x"),
        ] {
            let error = found(wrong, "a.example/x").unwrap_err();
            assert!(error.contains(why) && error.contains("registries.conf: "), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn later_files_replace_what_earlier_ones_say() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("registries.conf"), dir.path().join("d"));
        let sources = Sources { file: Some(file.clone()), folders: vec![folder.clone(), dir.path().join("none")] };
        let own = |name: &str| find(&sources, &name.parse().unwrap()).map(|places| places.own.domain);
        assert_eq!(own("a.example/x").unwrap(), "a.example");
        fs::write(&file, "[[registry]]\nlocation = \"a.example\"\nblocked = true").unwrap();
        assert!(own("a.example/x").is_err());
        fs::create_dir(&folder).unwrap();
        let entry = |to: &str| format!("[[registry]]\nprefix = \"a.example\"\nlocation = \"{to}\"");
        fs::write(folder.join("2.conf"), entry("two.example")).unwrap();
        fs::write(folder.join("1.conf"), entry("one.example")).unwrap();
        fs::write(folder.join("3.txt"), "no settings").unwrap();
        assert_eq!(own("a.example/x").unwrap(), "two.example");
    }
}

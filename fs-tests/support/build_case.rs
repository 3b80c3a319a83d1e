//! Dockerfile cases: text files in txtar form, each with a build context, the facts that the built image must have, and
//! the known faults of buildah.
//!
//! ```text
//! # what the case covers, in one sentence
//! args: --build-arg X=1 --target build
//! mode: bin/tool 4755
//! expect: config.Env ["PATH=/bin", "X=1"]
//! -- Dockerfile --
//! FROM localhost/base:1
//! COPY bin/tool /bin/
//! -- bin/tool --
//! content
//! ```
//!
//! The header, before the first section:
//!
//! | line | meaning |
//! | --- | --- |
//! | `args: WORDS` | arguments of `build`; `@CASE@` is the directory above the context |
//! | `mode: PATH OCTAL` | permissions of a context file |
//! | `owner: PATH UID:GID` | its owner |
//! | `xattr: PATH NAME VALUE` | an extended attribute |
//! | `link: PATH TARGET` | a symlink |
//! | `hardlink: PATH EXISTING` | a hard link |
//! | `dir: PATH` | an empty directory |
//! | `fifo: PATH` | a fifo |
//! | `bytes: PATH HEX` | a file of these bytes, for what is no text |
//! | `crlf: PATH` | ends the lines of a file with CR LF |
//! | `tar: PATH COMPRESSION DIR` | packs and removes a directory of the context; `none`, `gz`, `xz`, `bz2` or `zst` |
//! | `serve: DIR` | serves a directory of the context by HTTP; `@SERVER@` in sections is its URL |
//! | `expect: FACT` | a fact about the image, see [`Fact`] |
//! | `differs: WHAT REASON` | where buildah is wrong: `build`, `config.FIELD`, a path, or `PATH...` for all that begins so |
//! | `error: LINE TEXT` | the build must fail at this line (`-`: without a line) with this text |
//!
//! These lines are applied from top to bottom. A section whose name begins with `../` is outside of the context.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::env::{Output, run};
use super::oci::{Compression, compress};
use super::registry::{Reply, Server};
use super::show;
use super::tree::{Contents, Tree, scan};

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's name without its extension.
    pub name: String,
    /// The header's lines in order, without comments: a keyword and the rest.
    header: Vec<(String, String)>,
    /// The files: path and content.
    sections: Vec<(String, String)>,
}

/// The files of a case on disk.
pub struct CaseFiles {
    /// The directory above the context.
    pub dir: PathBuf,
    /// The HTTP server of `serve:`.
    _server: Option<Server>,
}

/// A failed build: the line that the message must name, if any, and a part of the message.
#[derive(Debug, PartialEq, Eq)]
pub struct ExpectedError {
    /// The line of the Dockerfile, from 1.
    pub line: Option<usize>,
    /// Text that the message contains, in any case of letters.
    pub text: String,
}

/// A built image: its configuration and its tree.
pub struct Built {
    /// The configuration, normalized by [`normalize_config`].
    pub config: Value,
    /// The scanned tree.
    pub tree: Tree,
    /// The directory that was scanned.
    pub root: PathBuf,
}

/// A fact of `expect:`.
enum Fact {
    /// `config.FIELD JSON`: `null` for an unset or empty field.
    Config(String, Value),
    /// `file PATH CONTENT`: the rest of the line, or a JSON string; a newline at the end does not count.
    File(String, String),
    /// `mode PATH OCTAL`
    Mode(String, u32),
    /// `owner PATH UID:GID`
    Owner(String, u32, u32),
    /// `link PATH TARGET`
    Link(String, String),
    /// `xattr PATH NAME VALUE`: with `*` for any value.
    Xattr(String, String, String),
    /// `dir PATH`
    Dir(String),
    /// `absent PATH`
    Absent(String),
    /// `same PATH PATH`: two hard links of one file.
    Same(String, String),
}

const KEYWORDS: &[&str] = &[
    "args", "mode", "owner", "xattr", "link", "hardlink", "dir", "fifo", "bytes", "crlf", "tar", "serve", "expect",
    "differs", "error",
];

/// The directory of the cases.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fs-tests/dockerfiles")
}

/// All cases, sorted by name.
pub fn all_cases() -> Vec<Case> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Case::read(file)).collect()
}

impl ExpectedError {
    /// Whether a build failed as expected: with exit code 1, and one line after the excerpt of the Dockerfile.
    pub fn check(&self, output: &Output) -> Result<(), String> {
        let errors = output.stderr.lines().filter(|line| line.starts_with("Error: ")).count();
        let message = output.stderr.trim_end().lines().next_back().unwrap_or_default();
        let names_line = self.line.is_none_or(|line| {
            let place = format!("Dockerfile:{line}");
            message
                .match_indices(&place)
                .any(|(at, _)| !message[at + place.len()..].starts_with(|c: char| c.is_ascii_digit()))
        });
        let has_text = message.to_lowercase().contains(&self.text.to_lowercase());
        if output.code == 1 && errors <= 1 && message.starts_with("Error: ") && names_line && has_text {
            return Ok(());
        }
        Err(format!("wanted exit code 1 and one line with {self:?}: {output:?}"))
    }
}

impl Built {
    /// Scans the tree of an image.
    pub fn scan(config: Value, root: &Path) -> Built {
        Built { config, tree: scan(root, Contents::Hash), root: root.to_owned() }
    }
}

impl Case {
    /// Whether a section has this text.
    pub fn mentions(&self, text: &str) -> bool {
        self.sections.iter().any(|(_, content)| content.contains(text))
    }

    /// The number of facts.
    pub fn fact_count(&self) -> usize {
        self.facts().len()
    }

    /// Whether a fact is about this field or path.
    pub fn has_fact(&self, what: &str) -> bool {
        self.facts().iter().any(|(_, fact)| fact.what() == what)
    }

    fn read(file: &Path) -> Case {
        assert!(file.extension().is_some_and(|e| e == "txt"), "{} is no case", file.display());
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(file).unwrap();
        assert!(text.starts_with("# "), "{name}: the first line must say what the case covers");
        let mut case = Case { name, header: Vec::new(), sections: Vec::new() };
        for line in text.lines() {
            let section = line.strip_prefix("-- ").and_then(|line| line.strip_suffix(" --"));
            match (section, case.sections.last_mut()) {
                (Some(path), _) => case.sections.push((path.to_owned(), String::new())),
                (None, Some((_, content))) => *content += &format!("{line}\n"),
                (None, None) if line.starts_with('#') || line.is_empty() => {}
                (None, None) => {
                    let (keyword, rest) = line.split_once(':').unwrap_or_else(|| panic!("{}: {line}", case.name));
                    assert!(KEYWORDS.contains(&keyword), "{}: unknown keyword {keyword}", case.name);
                    case.header.push((keyword.to_owned(), rest.trim_start().to_owned()));
                }
            }
        }
        assert!(!case.sections.is_empty(), "{}: no sections", case.name);
        case
    }

    fn lines(&self, keyword: &str) -> impl Iterator<Item = &str> {
        self.header.iter().filter(move |(known, _)| known == keyword).map(|(_, rest)| rest.as_str())
    }

    /// The error that the build must end with, for a case of bad input.
    pub fn error(&self) -> Option<ExpectedError> {
        let (line, text) = split(self.lines("error").next()?);
        let line = (line != "-").then(|| line.parse().unwrap_or_else(|_| panic!("{}: line {line}", self.name)));
        Some(ExpectedError { line, text: text.to_owned() })
    }

    /// The arguments of `build` before the context.
    pub fn args(&self, files: &CaseFiles) -> Vec<String> {
        let words = self.lines("args").flat_map(str::split_whitespace);
        words.map(|word| word.replace("@CASE@", files.dir.to_str().unwrap())).collect()
    }

    /// What buildah gets wrong, with reasons.
    pub fn differs(&self) -> Vec<(&str, &str)> {
        let all: Vec<(&str, &str)> = self.lines("differs").map(split).collect();
        assert!(all.iter().all(|(_, reason)| !reason.is_empty()), "{}: differs: needs a reason", self.name);
        all
    }

    /// Whether buildah can build the case.
    pub fn is_for_buildah(&self) -> bool {
        self.error().is_none() && !self.differs().iter().any(|(what, _)| *what == "build")
    }

    /// Whether a difference in `what` is a known fault of buildah.
    pub fn is_known(&self, what: &str) -> bool {
        self.differs().iter().any(|(known, _)| match known.strip_suffix("...") {
            Some(below) => what.starts_with(below),
            None => what == *known,
        })
    }

    /// Writes the files into a new directory.
    pub fn write(&self, dir: &Path) -> CaseFiles {
        let context = dir.join("context");
        fs::create_dir_all(&context).unwrap();
        let server = self.lines("serve").next().map(|from| serve(context.join(from)));
        let url = server.as_ref().map_or(String::new(), |server| format!("http://{}", server.host));
        for (path, content) in &self.sections {
            write_file(&context.join(path), content.replace("@SERVER@", &url).as_bytes());
        }
        for (keyword, rest) in &self.header {
            set_up(&context, keyword, rest);
        }
        CaseFiles { dir: dir.to_owned(), _server: server }
    }

    /// The facts, each with its line.
    fn facts(&self) -> Vec<(&str, Fact)> {
        let parse = |line| Fact::parse(line).unwrap_or_else(|| panic!("{}: expect: {line}", self.name));
        self.lines("expect").map(|line| (line, parse(line))).collect()
    }

    /// The facts that do not hold, except what `is_exempt` says of the field or path.
    pub fn failed_facts(&self, built: &Built, is_exempt: impl Fn(&str) -> bool) -> Vec<String> {
        let checked = self.facts().into_iter().filter(|(_, fact)| !is_exempt(&fact.what()));
        checked.filter_map(|(line, fact)| Some(format!("{}; expected: {line}", fact.check(built).err()?))).collect()
    }
}

fn write_file(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The first word and the rest.
fn split(line: &str) -> (&str, &str) {
    line.split_once(' ').map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}

/// Applies a line of the header to the context.
fn set_up(context: &Path, keyword: &str, rest: &str) {
    let (name, value) = split(rest);
    let path = context.join(name);
    match keyword {
        "mode" => {
            let mode = u32::from_str_radix(value, 8).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        "owner" => {
            let (uid, gid) = owner(value);
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        "xattr" => {
            let (name, value) = split(value);
            rustix::fs::setxattr(&path, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
        }
        "link" => symlink(value, &path).unwrap(),
        "hardlink" => fs::hard_link(context.join(value), &path).unwrap(),
        "dir" => fs::create_dir_all(&path).unwrap(),
        "fifo" => {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        "bytes" => {
            let digits: Vec<u8> = value.bytes().filter(u8::is_ascii_hexdigit).collect();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            write_file(&path, &digits.chunks(2).map(byte).collect::<Vec<u8>>());
        }
        "crlf" => fs::write(&path, fs::read_to_string(&path).unwrap().replace('\n', "\r\n")).unwrap(),
        "tar" => {
            let (compression, dir) = split(value);
            pack(context, &path, compression, dir);
        }
        _ => {}
    }
}

fn owner(text: &str) -> (u32, u32) {
    let (uid, gid) = text.split_once(':').unwrap();
    (uid.parse().unwrap(), gid.parse().unwrap())
}

/// Packs a directory of the context with GNU tar and removes it.
fn pack(context: &Path, archive: &Path, compression: &str, dir: &str) {
    let compression = match compression {
        "none" => Compression::None,
        "gz" => Compression::Gzip,
        "xz" => Compression::XzStreams(1),
        "bz2" => Compression::Bzip2Streams(1),
        "zst" => Compression::Zstd,
        other => panic!("{other} is no compression"),
    };
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--sort=name", "-cf"]).arg(archive);
    let output = run(command.arg("-C").arg(context.join(dir)).arg("."));
    assert_eq!(output.code, 0, "{output:#?}");
    fs::write(archive, compress(&fs::read(archive).unwrap(), compression)).unwrap();
    fs::remove_dir_all(context.join(dir)).unwrap();
}

/// Serves a directory's files by HTTP.
fn serve(dir: PathBuf) -> Server {
    Server::start(move |request| match fs::read(dir.join(request.path.trim_start_matches('/'))) {
        Ok(bytes) => Reply::new(200).header("Last-Modified", "Sat, 03 Feb 2001 04:05:06 GMT").body(bytes),
        Err(_) => Reply::new(404),
    })
}

impl Fact {
    fn parse(line: &str) -> Option<Fact> {
        let (kind, rest) = split(line);
        let (path, value) = split(rest);
        let (of, path_only) = (path.to_owned(), value.is_empty());
        Some(match kind {
            "file" if value.starts_with('"') => Fact::File(of, serde_json::from_str(value).ok()?),
            "file" => Fact::File(of, value.to_owned()),
            "mode" => Fact::Mode(of, u32::from_str_radix(value, 8).ok()?),
            "owner" => Fact::Owner(of, owner(value).0, owner(value).1),
            "link" => Fact::Link(of, value.to_owned()),
            "xattr" => {
                let (name, value) = split(value);
                Fact::Xattr(of, name.to_owned(), value.to_owned())
            }
            "same" => Fact::Same(of, value.to_owned()),
            "dir" if path_only => Fact::Dir(of),
            "absent" if path_only => Fact::Absent(of),
            _ => Fact::Config(kind.strip_prefix("config.")?.to_owned(), serde_json::from_str(rest).ok()?),
        })
    }

    /// The path, or `config.FIELD`, as `differs:` names it.
    fn what(&self) -> String {
        match self {
            Fact::Config(field, _) => format!("config.{field}"),
            Fact::File(path, _)
            | Fact::Mode(path, _)
            | Fact::Owner(path, ..)
            | Fact::Link(path, _)
            | Fact::Xattr(path, ..)
            | Fact::Dir(path)
            | Fact::Absent(path)
            | Fact::Same(path, _) => path.clone(),
        }
    }

    /// Returns what the image has instead.
    fn check(&self, built: &Built) -> Result<(), String> {
        let Built { config, tree, root } = built;
        if let Fact::Config(field, value) = self {
            let (value, actual) = (normalize_field(field, value.clone()), &config[field]);
            return if value == *actual { Ok(()) } else { Err(format!("config.{field} is {actual}")) };
        }
        let path = self.what();
        let record = tree.records.get(path.as_bytes());
        if matches!(self, Fact::Absent(_)) {
            return if record.is_none() { Ok(()) } else { Err(format!("{path} is there")) };
        }
        let record = record.ok_or_else(|| format!("{path} is missing"))?;
        let (kind, mode) = (record.mode & 0o170_000, record.mode & 0o7777);
        let (holds, actual) = match self {
            Fact::File(..) if kind != 0o100_000 => (false, format!("is no regular file but {kind:o}")),
            Fact::File(_, content) => {
                let actual = fs::read(root.join(&path[1..])).unwrap();
                let end = |text: &[u8]| text.strip_suffix(b"\n").unwrap_or(text).to_vec();
                (end(&actual) == end(content.as_bytes()), format!("contains {:?}", show(&actual)))
            }
            Fact::Mode(_, wanted) => (mode == *wanted, format!("has mode {mode:o}")),
            Fact::Owner(_, uid, gid) => {
                ((record.uid, record.gid) == (*uid, *gid), format!("belongs to {}:{}", record.uid, record.gid))
            }
            Fact::Link(_, target) => (
                record.target.as_deref() == Some(target.as_bytes()),
                format!("has mode {kind:o} and target {:?}", record.target),
            ),
            Fact::Xattr(_, name, value) => {
                let actual = record.xattrs.get(name.as_bytes());
                let is_it = actual.is_some_and(|actual| value == "*" || actual == value.as_bytes());
                (is_it, format!("has {name} {:?}", actual.map(|actual| show(actual))))
            }
            Fact::Same(_, other) => {
                let other = tree.records.get(other.as_bytes()).map(|record| record.ino);
                (other == Some(record.ino), "is another file".to_owned())
            }
            Fact::Dir(_) | Fact::Absent(_) | Fact::Config(..) => (kind == 0o040_000, "is no directory".to_owned()),
        };
        if holds { Ok(()) } else { Err(format!("{path} {actual}")) }
    }
}

/// The fields of a configuration that are compared.
const FIELDS: &[&str] = &[
    "Env",
    "Cmd",
    "Entrypoint",
    "User",
    "WorkingDir",
    "Labels",
    "ExposedPorts",
    "Volumes",
    "StopSignal",
    "Healthcheck",
    "OnBuild",
    "Shell",
];

/// The comparable part of an image's configuration: [`FIELDS`], author, architecture and operating system.
pub fn normalize_config(document: &Value) -> Value {
    let get = |name: &str| [name.to_owned(), name.to_lowercase()].iter().find_map(|n| document.get(n)).cloned();
    let config = get("Config").unwrap_or_default();
    let fields = FIELDS.iter().map(|field| (*field, config[field].clone()));
    let others = ["Author", "Architecture", "Os"].map(|field| (field, get(field).unwrap_or_default()));
    fields.chain(others).map(|(field, value)| (field.to_owned(), normalize_field(field, value))).collect()
}

/// An empty value equals a missing one, and the working directory `/` equals none.
fn normalize_field(field: &str, mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.remove("io.buildah.version");
        map.retain(|_, value| field == "Labels" || !matches!(value, Value::Number(n) if n.as_i64() == Some(0)));
        map.sort_keys();
    }
    let is_empty = match &value {
        Value::String(text) => text.is_empty() || (field == "WorkingDir" && text == "/"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if is_empty { Value::Null } else { value }
}

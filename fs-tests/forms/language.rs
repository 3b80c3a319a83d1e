//! A text notation for file trees. A tree is a list of entries separated by spaces; an entry is a path, its type, and
//! its attributes that differ from the defaults, separated by commas:
//!
//! ```text
//! d/              a directory                      0700          its mode
//! d/f=text        a file and its content           5:6           its owner and group
//! l->target       a symbolic link                  user.a=1      an extended attribute
//! b==d/f          one more name of a file          size-9        a file's size, with a hole behind its content
//! p,fifo  s,socket  c,char-1-3  b,block-7-0        @.opaque=y    an attribute of overlayfs, in the namespace of the
//! test x,wh            a device 0:0                     %=5:6:0700    an attribute for owner and mode, under the name
//! of the test
//! ```
//!
//! Parent directories may be left out. `/` is the root, `\xNN` any byte, `<x*255>` a long name. In an expected tree,
//! `p!` is a name that is listed and cannot be read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};

use crate::support::tree::{Contents, Record, scan};

/// The type of an entry, with its content or target.
#[derive(Debug, Clone, PartialEq)]
enum EntryKind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    /// A node that mknod makes.
    Node(FileType, u32, u32),
    Unreadable,
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    path: Vec<u8>,
    kind: EntryKind,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    size: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The attribute names that `@` and `%` stand for.
#[derive(Debug, Clone, Copy)]
pub struct Placeholders {
    /// `trusted.overlay` or `user.overlay`.
    pub marks: &'static str,
    /// The attribute that overrides owner and mode.
    pub stat: &'static str,
}

/// A tree as found: every path, with a line that describes it.
pub type Listing = BTreeMap<String, String>;

impl Placeholders {
    fn fill(self, text: &str) -> String {
        let text = text.replace(",@.", &format!(",{}.", self.marks));
        text.replace(",%=", &format!(",{}=", self.stat))
    }
}

fn entries(text: &str, placeholders: Placeholders) -> Vec<Entry> {
    placeholders.fill(text).split_whitespace().map(entry).collect()
}

fn entry(text: &str) -> Entry {
    let mut parts = text.split(',');
    let head = parts.next().unwrap();
    let split = |by: &str| head.split_once(by).map(|(path, rest)| (bytes(path), bytes(rest)));
    let (path, kind) = if let Some((path, other)) = split("==") {
        (path, EntryKind::HardLink(other))
    } else if let Some((path, target)) = split("->") {
        (path, EntryKind::Symlink(target))
    } else if let Some((path, content)) = split("=") {
        (path, EntryKind::File(content))
    } else if let Some(path) = head.strip_suffix('!') {
        (bytes(path), EntryKind::Unreadable)
    } else {
        (bytes(head.trim_end_matches('/')), EntryKind::Dir)
    };
    let mut entry = Entry { path, kind, mode: None, owner: None, size: None, xattrs: BTreeMap::new() };
    for part in parts {
        attribute(&mut entry, part);
    }
    let is_dir = entry.kind == EntryKind::Dir;
    assert!(!is_dir || head.ends_with('/'), "{text}: no entry type");
    entry
}

fn attribute(entry: &mut Entry, part: &str) {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{part}: no number"));
    let device = |text: &str| text.split_once('-').map(|(a, b)| (number(a), number(b))).unwrap();
    if let Some((name, value)) = part.split_once('=') {
        entry.xattrs.insert(bytes(name), bytes(value));
    } else if let Some((uid, gid)) = part.split_once(':') {
        entry.owner = Some((number(uid), number(gid)));
    } else if let Some(size) = part.strip_prefix("size-") {
        entry.size = Some(u64::from(number(size)));
    } else if part.starts_with('0') {
        entry.mode = Some(u32::from_str_radix(part, 8).unwrap());
    } else {
        let (kind, (major, minor)) = match part.split_once('-').unwrap_or((part, "0-0")) {
            ("wh", _) => (FileType::CharacterDevice, (0, 0)),
            ("fifo", _) => (FileType::Fifo, (0, 0)),
            ("socket", _) => (FileType::Socket, (0, 0)),
            ("char", numbers) => (FileType::CharacterDevice, device(numbers)),
            ("block", numbers) => (FileType::BlockDevice, device(numbers)),
            _ => panic!("{part}: unknown attribute"),
        };
        // The path alone parsed as a directory.
        entry.kind = EntryKind::Node(kind, major, minor);
    }
}

fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(code) = rest.strip_prefix("\\x") {
            out.push(u8::from_str_radix(&code[..2], 16).unwrap());
            rest = &code[2..];
        } else if first == '<' {
            let (inside, behind) = rest[1..].split_once('>').unwrap();
            let (part, times) = inside.split_once('*').unwrap();
            out.extend(part.repeat(times.parse().unwrap()).bytes());
            rest = behind;
        } else {
            out.extend(first.to_string().bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn join(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)))
}

/// Creates a tree in a new directory.
pub fn build(root: &Path, text: &str, placeholders: Placeholders) {
    fs::create_dir_all(root).unwrap();
    let entries = entries(text, placeholders);
    for entry in &entries {
        let at = join(root, &entry.path);
        let made = fs::create_dir_all(at.parent().unwrap()).and_then(|()| make(root, &at, entry));
        made.unwrap_or_else(|e| panic!("{text}: {}: {e}", at.display()));
    }
    for entry in &entries {
        let at = join(root, &entry.path);
        set_metadata(&at, entry).unwrap_or_else(|e| panic!("{text}: {}: {e}", at.display()));
    }
}

fn make(root: &Path, at: &Path, entry: &Entry) -> std::io::Result<()> {
    match &entry.kind {
        EntryKind::Dir => fs::create_dir_all(at),
        EntryKind::File(content) => {
            fs::write(at, content)?;
            entry.size.map_or(Ok(()), |size| fs::File::options().write(true).open(at)?.set_len(size))
        }
        EntryKind::Symlink(target) => symlink(OsStr::from_bytes(target), at),
        EntryKind::HardLink(other) => fs::hard_link(join(root, other), at),
        EntryKind::Node(kind, major, minor) => {
            let device = rustix::fs::makedev(*major, *minor);
            Ok(rustix::fs::mknodat(CWD, at, *kind, Mode::from_raw_mode(0o644), device)?)
        }
        EntryKind::Unreadable => panic!("an unreadable entry cannot be created"),
    }
}

/// Sets extended attributes, owner and mode in an order in which none undoes another.
fn set_metadata(at: &Path, entry: &Entry) -> std::io::Result<()> {
    for (name, value) in &entry.xattrs {
        rustix::fs::lsetxattr(at, name.as_slice(), value, XattrFlags::empty())?;
    }
    if let Some((uid, gid)) = entry.owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    match (&entry.kind, entry.mode) {
        (EntryKind::Symlink(_) | EntryKind::HardLink(_), _) => Ok(()),
        (kind, mode) => {
            let usual = if *kind == EntryKind::Dir { 0o755 } else { 0o644 };
            Ok(rustix::fs::chmodat(CWD, at, Mode::from_raw_mode(mode.unwrap_or(usual)), AtFlags::empty())?)
        }
    }
}

/// The tree that a text describes.
pub fn expected(text: &str, placeholders: Placeholders) -> Listing {
    let entries = entries(text, placeholders);
    let mut listing = Listing::from([(String::new(), "dir 0755 0:0".to_owned())]);
    for entry in &entries {
        let above = entry.path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0);
        for (at, _) in above {
            listing.entry(entry.path[..at].escape_ascii().to_string()).or_insert("dir 0755 0:0".to_owned());
        }
        listing.insert(entry.path.escape_ascii().to_string(), format_entry(entry, &entries));
    }
    listing
}

fn format_entry(entry: &Entry, all: &[Entry]) -> String {
    let (text, usual) = match &entry.kind {
        EntryKind::Dir => ("dir".to_owned(), 0o755),
        EntryKind::File(content) => (format_file(content), 0o644),
        EntryKind::Symlink(target) => (format!("-> {}", target.escape_ascii()), 0o777),
        EntryKind::HardLink(other) => return format_entry(all.iter().find(|entry| entry.path == *other).unwrap(), all),
        EntryKind::Node(kind, major, minor) => (format_node(*kind, (*major, *minor)), 0o644),
        EntryKind::Unreadable => return "cannot be read".to_owned(),
    };
    let (uid, gid) = entry.owner.unwrap_or((0, 0));
    format_metadata(text, entry.mode.unwrap_or(usual), uid, gid, &entry.xattrs)
}

/// A file's content: in full if short, else as a checksum.
fn format_file(content: &[u8]) -> String {
    if content.len() > 60 {
        let sum = content.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        return format!("file of {} with sum {sum:x}", content.len());
    }
    format!("file of {} \"{}\"", content.len(), content.escape_ascii())
}

fn format_node(kind: FileType, (major, minor): (u32, u32)) -> String {
    format!("{kind:?} {major}:{minor}")
}

fn format_metadata(text: String, mode: u32, uid: u32, gid: u32, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let one = |(name, value): (&Vec<u8>, &Vec<u8>)| format!(" {}={}", name.escape_ascii(), value.escape_ascii());
    format!("{text} {mode:04o} {uid}:{gid}{}", xattrs.iter().map(one).collect::<String>())
}

/// Scans a tree. A path is unreadable if a call fails; contradictions get a line of their own, those in the inode
/// numbers of listings only if `inodes` is set.
pub fn list_tree(root: &Path, inodes: bool) -> Listing {
    let tree = scan(root, Contents::Skip);
    let mut listing: Listing =
        tree.records.iter().map(|(path, record)| (key(path), record_line(root, path, record))).collect();
    for fault in tree.faults {
        match fault.field.as_str() {
            "d_ino" if !inodes => {}
            "d_ino" | "d_type" => {
                drop(listing.insert(format!("{} {}", key(&fault.path), fault.field), fault.to_string()))
            }
            _ => drop(listing.insert(key(&fault.path), "cannot be read".to_owned())),
        }
    }
    listing
}

fn key(path: &[u8]) -> String {
    path.strip_prefix(b"/").unwrap_or(path).escape_ascii().to_string()
}

fn record_line(root: &Path, path: &[u8], record: &Record) -> String {
    let kind = FileType::from_raw_mode(record.mode);
    let text = match kind {
        FileType::Directory => "dir".to_owned(),
        FileType::RegularFile => match fs::read(join(root, path)) {
            Ok(content) if content.len() as u64 == record.size => format_file(&content),
            Ok(content) => format!("{} but its size is {}", format_file(&content), record.size),
            Err(_) => return "cannot be read".to_owned(),
        },
        FileType::Symlink => format!("-> {}", record.target.clone().unwrap_or_default().escape_ascii()),
        kind => format_node(kind, record.rdev),
    };
    format_metadata(text, record.mode & 0o7777, record.uid, record.gid, &record.xattrs)
}

/// The differences, a line each.
pub fn differences(expected: &Listing, listing: &Listing) -> Vec<String> {
    let none = "nothing".to_owned();
    let paths = expected.keys().chain(listing.keys().filter(|path| !expected.contains_key(*path)));
    let of = |listing: &Listing, path: &String| listing.get(path).unwrap_or(&none).clone();
    paths
        .filter(|path| expected.get(*path) != listing.get(*path))
        .map(|path| {
            let name: String = path.chars().take(60).collect();
            format!("/{name}: expected {}, is {}", of(expected, path), of(listing, path))
        })
        .collect()
}

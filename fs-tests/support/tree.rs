//! A tree scanner: the metadata and contents of every path of a tree, and the differences between two trees.
//!
//! The scan opens each directory relative to its parent and uses the `*at` system calls, so paths may exceed PATH_MAX
//! and names may be any bytes.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::show;

/// The metadata of one path, as its system calls return it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size; 0 for a directory, whose size means nothing.
    pub size: u64,
    /// Major and minor number of a device, else 0.
    pub rdev: (u32, u32),
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Link count; for a directory, 2 plus its subdirectories.
    pub nlink: u64,
    /// Inode number: compared within a tree, never between two.
    pub ino: u64,
    /// A symlink's target.
    pub target: Option<Vec<u8>>,
    /// Every extended attribute, in order of name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// SHA-256 of a file's content, if contents were asked for.
    pub hash: Option<[u8; 32]>,
}

/// One difference of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path from the tree's root, beginning with `/`.
    pub path: Vec<u8>,
    /// What differs: `mode`, `uid`, `mtime`, `xattr user.x`, `content`, `links`, `d_type`, ...
    pub field: String,
    /// The expected value.
    pub expected: String,
    /// The actual value.
    pub actual: String,
}

/// A scanned tree.
#[derive(Debug, Default)]
pub struct Tree {
    /// Every path from the root, which is `/`.
    pub records: BTreeMap<Vec<u8>, Record>,
    /// Inconsistencies found by the scan: a failed call, a `d_type` or `d_ino` unlike stat, a name listed twice.
    pub faults: Vec<Difference>,
}

/// Whether to read contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Read and hash every regular file.
    Hash,
    /// Metadata only.
    Skip,
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |text: &str| text.chars().take(300).collect::<String>();
        let (expected, actual) = (cut(&self.expected), cut(&self.actual));
        write!(out, "{}: {}: expected {expected}, is {actual}", show(&self.path), self.field)
    }
}

/// Scan a directory and all below it. Panics only where the directory itself cannot be opened; what fails further down
/// is a fault of the tree.
pub fn scan(root: &Path, contents: Contents) -> Tree {
    raise_file_limit();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    // A path of 4,095 bytes can be 2,047 directories deep, and each is a call of the walk.
    let walk = move || {
        let mut scanner = Scanner { tree: Tree::default(), contents, path: Vec::new() };
        scanner.root(fd);
        scanner.tree
    };
    std::thread::Builder::new().stack_size(64 << 20).spawn(walk).unwrap().join().unwrap()
}

/// Scan two trees at once, each on a thread of its own.
pub fn scan_both(left: &Path, right: &Path, contents: Contents) -> (Tree, Tree) {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| scan(left, contents));
        let right = scan(right, contents);
        (other.join().unwrap(), right)
    })
}

/// One descriptor is held for each level of depth.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // What cannot be raised shows as EMFILE in the scan.
    let _ = setrlimit(Resource::Nofile, raised);
}

struct Scanner {
    tree: Tree,
    contents: Contents,
    /// The path of the directory being read; empty for the root.
    path: Vec<u8>,
}

struct Listed {
    name: CString,
    kind: FileType,
    ino: u64,
}

impl Scanner {
    fn root(&mut self, fd: OwnedFd) {
        match record(fd.as_fd(), c".", self.contents) {
            Ok(root) => {
                let ino = root.ino;
                self.tree.records.insert(b"/".to_vec(), root);
                self.directory(&fd, ino, None);
            }
            Err((call, error)) => self.fault(b"/".to_vec(), call, "success", error),
        }
    }

    /// Read one directory; `parent` is its parent's inode number, unknown for the root.
    fn directory(&mut self, fd: &OwnedFd, ino: u64, parent: Option<u64>) {
        let listed = match list(fd) {
            Ok(listed) => listed,
            Err(error) => return self.fault(self.path.clone(), "readdir", "success", error),
        };
        for entry in listed {
            match entry.name.to_bytes() {
                b"." => self.check_ino(b".", ino, entry.ino),
                b".." => parent.into_iter().for_each(|parent| self.check_ino(b"..", parent, entry.ino)),
                _ => self.entry(fd, ino, &entry),
            }
        }
    }

    fn entry(&mut self, fd: &OwnedFd, parent: u64, entry: &Listed) {
        let path = self.join(entry.name.to_bytes());
        let record = match record(fd.as_fd(), &entry.name, self.contents) {
            Ok(record) => record,
            Err((call, error)) => return self.fault(path, call, "success", error),
        };
        let kind = FileType::from_raw_mode(record.mode);
        if entry.kind != kind {
            self.fault(path.clone(), "d_type", format!("{kind:?}"), format!("{:?}", entry.kind));
        }
        self.check_ino(entry.name.to_bytes(), record.ino, entry.ino);
        let ino = record.ino;
        if self.tree.records.insert(path.clone(), record).is_some() {
            self.fault(path, "readdir", "listed once", "listed twice");
            return;
        }
        if kind == FileType::Directory {
            self.descend(fd, entry, path, ino, parent);
        }
    }

    fn descend(&mut self, fd: &OwnedFd, entry: &Listed, path: Vec<u8>, ino: u64, parent: u64) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(fd, &entry.name, flags, Mode::empty()) {
            Ok(below) => {
                let outer = std::mem::replace(&mut self.path, path);
                self.directory(&below, ino, Some(parent));
                self.path = outer;
            }
            Err(error) => self.fault(path, "open directory", "success", error),
        }
    }

    fn check_ino(&mut self, name: &[u8], stat: u64, listed: u64) {
        if stat != listed {
            self.fault(self.join(name), "d_ino", stat, listed);
        }
    }

    fn join(&self, name: &[u8]) -> Vec<u8> {
        [&self.path, b"/".as_slice(), name].concat()
    }

    fn fault(&mut self, path: Vec<u8>, field: &str, expected: impl ToString, actual: impl ToString) {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        self.tree.faults.push(Difference { path, field: field.to_owned(), expected, actual });
    }
}

fn list(fd: &OwnedFd) -> Result<Vec<Listed>, Errno> {
    Dir::read_from(fd)?
        .map(|entry| entry.map(|e| Listed { name: e.file_name().to_owned(), kind: e.file_type(), ino: e.ino() }))
        .collect()
}

type Failed = (&'static str, Errno);

fn record(dir: BorrowedFd<'_>, name: &CStr, contents: Contents) -> Result<Record, Failed> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| ("stat", e))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let target = match kind {
        FileType::Symlink => Some(readlink(dir, name, &stat)?),
        _ => None,
    };
    let hash = match (kind, contents) {
        (FileType::RegularFile, Contents::Hash) => Some(hash(dir, name).map_err(|e| ("read", e))?),
        _ => None,
    };
    Ok(Record {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == FileType::Directory { 0 } else { stat.st_size as u64 },
        rdev: device(kind, &stat),
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        nlink: stat.st_nlink,
        ino: stat.st_ino,
        target,
        xattrs: xattrs(dir, name)?,
        hash,
    })
}

fn device(kind: FileType, stat: &Stat) -> (u32, u32) {
    match kind {
        FileType::CharacterDevice | FileType::BlockDevice => {
            (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        }
        _ => (0, 0),
    }
}

fn readlink(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<Vec<u8>, Failed> {
    let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(|e| ("readlink", e))?.into_bytes();
    // lstat's size is the buffer that many programs give readlink.
    if target.len() as i64 != stat.st_size {
        return Err(("size of the symlink", Errno::NAMETOOLONG));
    }
    Ok(target)
}

fn hash(dir: BorrowedFd<'_>, name: &CStr) -> Result<[u8; 32], Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
}

/// The calls that take a descriptor need one open for reading, which a device, a fifo or a symlink cannot give; so go
/// by a path that begins at the directory's descriptor.
fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failed> {
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path.as_slice(), &mut names).map_err(|e| ("listxattr", e))?;
    let mut found = BTreeMap::new();
    let mut value = vec![0; if length == 0 { 0 } else { 1 << 16 }];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let size = rustix::fs::lgetxattr(path.as_slice(), name, &mut value).map_err(|e| ("getxattr", e))?;
        found.insert(name.to_vec(), value[..size].to_vec());
    }
    Ok(found)
}

/// All differences between two trees, faults of the actual tree first.
pub fn diff(expected: &Tree, actual: &Tree) -> Vec<Difference> {
    let mut found = actual.faults.clone();
    let mut report = |path: &[u8], field: &str, expected: String, actual: String| {
        found.push(Difference { path: path.to_vec(), field: field.to_owned(), expected, actual });
    };
    for (path, want) in &expected.records {
        match actual.records.get(path) {
            Some(have) => diff_record(want, have, &mut |field, want, have| report(path, field, want, have)),
            None => report(path, "path", "there".into(), "missing".into()),
        }
    }
    for path in actual.records.keys().filter(|path| !expected.records.contains_key(*path)) {
        report(path, "path", "absent".into(), "there".into());
    }
    let (want, have) = (link_groups(expected), link_groups(actual));
    for (path, names) in &want {
        let other = have.get(path).map_or(String::new(), |names| show_group(names));
        if show_group(names) != other {
            report(path, "links", show_group(names), other);
        }
    }
    for (path, names) in have.iter().filter(|(path, _)| !want.contains_key(*path)) {
        report(path, "links", String::new(), show_group(names));
    }
    found
}

fn diff_record(want: &Record, have: &Record, report: &mut dyn FnMut(&str, String, String)) {
    let kind = |record: &Record| FileType::from_raw_mode(record.mode);
    if kind(want) != kind(have) {
        return report("type", format!("{:?}", kind(want)), format!("{:?}", kind(have)));
    }
    let mut check = |field: &str, want: String, have: String| {
        if want != have {
            report(field, want, have);
        }
    };
    check("mode", format!("{:o}", want.mode & 0o7777), format!("{:o}", have.mode & 0o7777));
    check("uid", want.uid.to_string(), have.uid.to_string());
    check("gid", want.gid.to_string(), have.gid.to_string());
    check("size", want.size.to_string(), have.size.to_string());
    check("rdev", format!("{:?}", want.rdev), format!("{:?}", have.rdev));
    check("mtime", show_time(want.mtime), show_time(have.mtime));
    check("nlink", want.nlink.to_string(), have.nlink.to_string());
    check("target", show_value(want.target.as_deref()), show_value(have.target.as_deref()));
    if let (Some(want), Some(have)) = (want.hash, have.hash) {
        check("content", show_hash(want), show_hash(have));
    }
    for name in want.xattrs.keys().chain(have.xattrs.keys().filter(|name| !want.xattrs.contains_key(*name))) {
        let value = |record: &Record| show_value(record.xattrs.get(name).map(Vec::as_slice));
        check(&format!("xattr {}", show(name)), value(want), value(have));
    }
}

fn show_time((seconds, nanos): (i64, u32)) -> String {
    format!("{seconds} s + {nanos} ns")
}

fn show_value(value: Option<&[u8]>) -> String {
    value.map_or("none".to_owned(), |value| format!("\"{}\"", show(value)))
}

fn show_hash(hash: [u8; 32]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn show_group(names: &[&[u8]]) -> String {
    names.iter().map(|name| show(name)).collect::<Vec<_>>().join(" = ")
}

/// The sets of two or more paths that are hard links of one inode, each under its first path.
pub fn link_groups(tree: &Tree) -> BTreeMap<&[u8], Vec<&[u8]>> {
    let mut inodes: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
    for (path, record) in &tree.records {
        inodes.entry(record.ino).or_default().push(path);
    }
    inodes.into_values().filter(|names| names.len() > 1).map(|names| (names[0], names)).collect()
}

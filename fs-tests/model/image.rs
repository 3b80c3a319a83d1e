//! The initial tree of every run, so that steps work on image content too: as a list, as files, as layers.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::op::{At, CAPABILITY, CAPABILITY_NAME, Special, expand, pattern};
use crate::support::tar::{Entry, Segment, Sparse, Tar};

/// One path of the image.
#[derive(Clone, Debug)]
pub struct Initial {
    pub path: At,
    pub start: Start,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub enum Start {
    Dir,
    /// Data in some places of a file of this size; the rest is holes.
    File {
        size: u64,
        segments: Vec<Segment>,
    },
    Symlink(&'static str),
    /// A further name of an earlier path.
    Link(At),
    Special(Special, (u32, u32)),
}

impl Initial {
    fn new(path: At, start: Start) -> Self {
        let mode = match start {
            Start::Dir => 0o755,
            Start::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let second = 1_500_000_000 + path.len() as i64 * 1000;
        Self { path, start, mode, owner: (0, 0), mtime: (second, 123_456_789), xattrs: Vec::new() }
    }

    fn dir(path: At) -> Self {
        Self::new(path, Start::Dir)
    }

    fn file(path: At, len: usize) -> Self {
        Self::new(path, Start::File { size: len as u64, segments: vec![(0, pattern(path.len() as u8, 0, len))] })
    }

    fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    fn owner(self, uid: u32, gid: u32) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    fn mtime(self, seconds: i64, nanos: u32) -> Self {
        Self { mtime: (seconds, nanos), ..self }
    }

    fn xattr(mut self, name: &'static str, value: &[u8]) -> Self {
        self.xattrs.push((name, value.to_vec()));
        self
    }

    /// A file's bytes.
    pub fn content(&self) -> Vec<u8> {
        let Start::File { size, segments } = &self.start else { return Vec::new() };
        let mut bytes = vec![0; *size as usize];
        segments.iter().for_each(|(at, data)| bytes[*at as usize..][..data.len()].copy_from_slice(data));
        bytes
    }
}

/// The image. Parents come before what is in them.
pub fn image() -> Vec<Initial> {
    let holes = vec![(8192, pattern(9, 8192, 4096)), (200_000, pattern(9, 200_000, 5000))];
    vec![
        Initial::file("a", 5000).mtime(-5, 250_000_000),
        Initial::new("b", Start::Link("a")),
        Initial::new("c", Start::Symlink("dir")),
        Initial::dir("d").mode(0o2775).owner(0, 50),
        Initial::file("d/a", 10),
        Initial::dir("d/b").mode(0o2755).owner(7, 50),
        Initial::file("d/b/c", 4096).owner(7, 50),
        Initial::dir("dir"),
        Initial::file("dir/a", 9000).owner(1000, 1000).xattr("user.a", b"1").xattr("trusted.c", b"a\0b"),
        Initial::new("dir/b", Start::Link("a")),
        Initial::dir("dir/sub").mode(0o750).owner(1000, 100).xattr("user.b", b"2"),
        Initial::file("dir/sub/a", 0),
        Initial::dir("dir/sub/deep").mtime(4_294_967_303, 1),
        Initial::file("dir/sub/deep/leaf", 70_000),
        Initial::new("dir/sub/deep/up", Start::Symlink("../a")),
        Initial::new("dir/sub/leaf", Start::Link("dir/sub/deep/leaf")),
        Initial::dir("e"),
        Initial::dir("e/a"),
        Initial::dir("e/a/b"),
        Initial::dir("e/a/b/c").mode(0o1755),
        Initial::file("e/a/b/c/d", 300),
        Initial::file("e/a/<255>", 100),
        Initial::dir("f"),
        Initial::new("fifo", Start::Special(Special::Fifo, (0, 0))).mode(0o600),
        Initial::new("node", Start::Special(Special::Char, (1, 3))).mode(0o666),
        Initial::new("block", Start::Special(Special::Block, (7, 9))).owner(0, 6),
        Initial::new("loop", Start::Symlink("loop")),
        Initial::new("sparse", Start::File { size: 300_000, segments: holes }),
        Initial::file("suid", 3000).mode(0o6755).xattr(CAPABILITY_NAME, &CAPABILITY),
        Initial::file("big", 200_000).mode(0o400),
        Initial::dir("opaque").mode(0o711),
        Initial::file("opaque/a", 20),
        Initial::dir("opaque/sub"),
    ]
}

/// Writes the image into an existing directory.
pub fn unpack(root: &Path, image: &[Initial]) {
    let at = |path: &str| root.join(expand(path));
    for entry in image {
        let path = at(entry.path);
        match &entry.start {
            Start::Dir => std::fs::create_dir(&path).unwrap(),
            Start::File { size, segments } => {
                use std::os::unix::fs::FileExt;
                let file = std::fs::File::create_new(&path).unwrap();
                file.set_len(*size).unwrap();
                segments.iter().for_each(|(at, data)| file.write_all_at(data, *at).unwrap());
            }
            Start::Symlink(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            Start::Link(target) => {
                std::fs::hard_link(at(target), &path).unwrap();
                continue;
            }
            Start::Special(kind, (major, minor)) => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(CWD, &path, file_type(*kind), Mode::empty(), device).unwrap();
            }
        }
        set_attributes(&path, entry);
    }
    // Backwards, as making an entry changes the time of its directory.
    image.iter().rev().for_each(|entry| set_time(&at(entry.path), entry));
}

pub fn file_type(kind: Special) -> FileType {
    match kind {
        Special::Regular => FileType::RegularFile,
        Special::Fifo => FileType::Fifo,
        Special::Char => FileType::CharacterDevice,
        Special::Block => FileType::BlockDevice,
        Special::Socket => FileType::Socket,
    }
}

fn set_attributes(path: &PathBuf, entry: &Initial) {
    let (uid, gid) = entry.owner;
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    if !matches!(entry.start, Start::Symlink(_)) {
        rustix::fs::chmod(path, Mode::from_raw_mode(entry.mode)).unwrap();
    }
    for (name, value) in &entry.xattrs {
        rustix::fs::lsetxattr(path, *name, value, XattrFlags::empty()).unwrap();
    }
}

fn set_time(path: &PathBuf, entry: &Initial) {
    if matches!(entry.start, Start::Link(_)) {
        return;
    }
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The image as three layers, lowest first. The lower two hold what the upper ones replace, hide by whiteouts and hide
/// by opaque markers; a hard link may stand in a higher layer than what it links to.
pub fn layers(image: &[Initial]) -> Vec<Vec<u8>> {
    let mut tars = [Tar::new().add(Entry::dir("./")), Tar::new().add(Entry::dir("./")), Tar::new()];
    tars[0] = std::mem::take(&mut tars[0])
        .dir("gone")
        .file("gone/a", b"not to be seen")
        .dir("opaque")
        .file("opaque/hidden", b"not to be seen")
        .dir("opaque/sub")
        .file("opaque/sub/hidden", b"not to be seen")
        .dir("f")
        .file("f/gone", b"not to be seen")
        .file("e", b"a file below a directory");
    tars[1] = std::mem::take(&mut tars[1]).whiteout("gone").whiteout("f/gone").opaque("opaque");
    for (number, entry) in image.iter().enumerate() {
        let place = match entry.start {
            // The parents of everything are there before.
            Start::Dir => 1,
            Start::Link(_) => 2,
            _ => number % 3,
        };
        // The lowest layer has no directory `e` and loses `opaque`.
        let hidden = entry.path.starts_with("e/") || entry.path.starts_with("opaque/");
        let place = if place == 0 && hidden { 1 } else { place };
        if place == 1 && matches!(entry.start, Start::File { .. }) && !hidden {
            tars[0] = std::mem::take(&mut tars[0]).file(expand(entry.path), b"an older version");
        }
        tars[place] = std::mem::take(&mut tars[place]).add(tar_entry(entry));
    }
    tars.into_iter().map(Tar::finish).collect()
}

fn tar_entry(initial: &Initial) -> Entry {
    let path = expand(initial.path);
    let entry = match &initial.start {
        Start::Dir => Entry::dir(path),
        Start::File { size, segments } if segments.len() > 1 => Entry::sparse(path, *size, segments, Sparse::Pax10),
        Start::File { .. } => Entry::file(path, initial.content()),
        Start::Symlink(target) => Entry::symlink(path, target),
        Start::Link(target) => return Entry::hard_link(path, expand(target)),
        Start::Special(Special::Char, (major, minor)) => Entry::char_device(path, (*major).into(), (*minor).into()),
        Start::Special(Special::Block, (major, minor)) => Entry::block_device(path, (*major).into(), (*minor).into()),
        Start::Special(..) => Entry::fifo(path),
    };
    let entry = entry
        .mode(initial.mode)
        .owner(initial.owner.0.into(), initial.owner.1.into())
        .mtime(initial.mtime.0, initial.mtime.1);
    initial.xattrs.iter().fold(entry, |entry, (name, value)| entry.xattr(name, value))
}

//! A union without a kernel: an image in memory, a temporary upper directory, and snapshots of the merged tree.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use plyfs::backing::{Backing, Disk};
use plyfs::digest::Digest;
use plyfs::fs::{Attr, Data, Forms, Fs, FsError, Ino, LowerDirs, LowerDirsOptions, ROOT};
use plyfs::layer::{Index, Limits, index_tar};
use plyfs::meta::Kind;
use plyfs::sys::Bytes;
use plyfs::tree;
use plyfs::upper::{Below, OpenError, Owners, Settings, Upper, User, View};
use tempfile::TempDir;

/// Layers, with a temporary upper directory above them.
pub struct UnionFixture {
    tars: Vec<Vec<u8>>,
    indexes: Vec<Vec<u8>>,
    dir: TempDir,
    /// Whether uppers are opened volatile.
    pub volatile: bool,
    /// The user that upper directories are opened for.
    pub user: User,
    /// The layers unpacked as plain directories, the bottom one first, merged instead of the image; empty for an image.
    dirs: Vec<PathBuf>,
}

/// A backing that makes the real system calls.
pub fn disk() -> Box<dyn Backing> {
    Box::new(Disk)
}

/// The state of one inode in the union, without directories' times and without access and change times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeState {
    /// Inode number.
    pub ino: Ino,
    /// Kind, mode, link count, owner, group, device, size, and the modification time unless it is a directory.
    pub attr: (Kind, u16, u32, u32, u32, u32, u64, i64),
    /// A file's content, a link's target.
    pub content: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A snapshot of a tree: every path with its inode.
pub type Snapshot = BTreeMap<String, InodeState>;

impl UnionFixture {
    /// A union of these layers, the bottom one first.
    pub fn new(tars: Vec<Vec<u8>>) -> UnionFixture {
        let index = |tar: &Vec<u8>| index_tar(&mut &tar[..], &Limits::default()).unwrap().seal(&Digest::of(tar));
        let indexes = tars.iter().map(index).collect();
        let dir = tempfile::Builder::new().prefix("plyfs-test-").tempdir().unwrap();
        UnionFixture { tars, indexes, dir, volatile: false, user: User::own(), dirs: Vec::new() }
    }

    /// A union of these layers as plain directories. They must hold no whiteouts and no opaque markers.
    pub fn unpacked(tars: Vec<Vec<u8>>) -> UnionFixture {
        let mut fixture = UnionFixture::new(tars);
        for (number, tar) in fixture.tars.iter().enumerate() {
            let (dir, file) = (fixture.dir.path().join(format!("lower{number}")), fixture.dir.path().join("tar"));
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(&file, tar).unwrap();
            let mut unpack = Command::new("tar");
            unpack.args(["--xattrs", "--xattrs-include=*", "-xpf"]).arg(&file).arg("-C").arg(&dir);
            assert!(unpack.status().unwrap().success());
            fixture.dirs.push(dir);
        }
        fixture
    }

    /// The upper directory.
    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// The work directory.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Removes the upper and the work directory.
    pub fn clear(&self) {
        for dir in [self.upper(), self.work()] {
            let _absent_at_first = std::fs::remove_dir_all(dir);
        }
    }

    /// Opens the upper directory only.
    pub fn open_upper(&self, backing: Box<dyn Backing>) -> Result<Upper, OpenError> {
        let settings = Settings {
            upper: self.upper(),
            work: self.work(),
            below: match self.dirs[..] {
                [] => Below::Image(Digest::of(&self.tars.concat())),
                _ => Below::Directories(Owners::Native),
            },
            volatile: self.volatile,
            user: self.user,
            native_owners: false,
            descriptors: 4,
        };
        Upper::open(&settings, backing)
    }

    /// Opens the union.
    pub fn open(&self, backing: impl Fn() -> Box<dyn Backing>) -> Fs {
        self.with(self.open_upper(backing()).unwrap()).unwrap()
    }

    /// Opens the union with an open upper directory.
    pub fn with(&self, upper: Upper) -> Result<Fs, FsError> {
        if !self.dirs.is_empty() {
            let layers = self.dirs.iter().rev().cloned().collect();
            let options = LowerDirsOptions { layers, static_nlink: false, descriptors: 6 };
            return Fs::of_dirs(
                LowerDirs::open(&options).unwrap_or_else(|(_, e)| panic!("{e}")),
                Some(upper),
                Forms::default(),
                None,
            );
        }
        let (tree, layers) = self.image();
        Fs::writable(tree, layers, upper, None)
    }

    /// Opens the union as a read-only view.
    pub fn view(&self) -> Fs {
        let image = Digest::of(&self.tars.concat());
        let view = View { upper: self.upper(), image, user: self.user, descriptors: 4 };
        self.with(Upper::view(&view).unwrap()).unwrap()
    }

    /// The image alone, with more layers on top of its own.
    pub fn image_with(&self, more: &[Vec<u8>]) -> Fs {
        let fixture = UnionFixture::new(self.tars.iter().chain(more).cloned().collect());
        let (tree, layers) = fixture.image();
        Fs::new(tree, layers)
    }

    fn image(&self) -> (Index, Vec<Data>) {
        let open = |bytes: &Vec<u8>| Index::open(Bytes::Owned(bytes.clone())).unwrap();
        let indexes: Vec<Index> = self.indexes.iter().map(open).collect();
        let merged = tree::merge(&Digest::of(&self.tars.concat()), &indexes).unwrap();
        let data = self.tars.iter().map(|tar| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(tar).unwrap();
            Data::open(file).unwrap()
        });
        (Index::open(Bytes::Owned(merged)).unwrap(), data.collect())
    }
}

/// The inode at a path.
pub fn at(fs: &Fs, path: &str) -> Result<Attr, FsError> {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(fs.getattr(ROOT), |at, name| fs.lookup(at?.ino, name.as_bytes()))
}

/// A path's directory and its name in it.
pub fn split<'a>(fs: &Fs, path: &'a str) -> Result<(Ino, &'a [u8]), FsError> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((at(fs, dir)?.ino, name.as_bytes()))
}

/// A file's content.
pub fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let size = fs.getattr(ino).unwrap().size;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let piece = fs.read(ino, bytes.len() as u64, 1021).unwrap();
        assert!(!piece.is_empty(), "a file ends early");
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Takes a snapshot, and asserts that listings, lookups and attributes agree.
pub fn take_snapshot(fs: &Fs) -> Snapshot {
    let mut all = Snapshot::new();
    record_inode(fs, ROOT, String::new(), &mut all);
    all
}

fn record_inode(fs: &Fs, ino: Ino, path: String, all: &mut Snapshot) {
    let attr = fs.getattr(ino).unwrap();
    assert_eq!(attr.ino, ino);
    let names = fs.listxattr(ino, true).unwrap();
    let names = names.split(|b| *b == 0).filter(|name| !name.is_empty());
    let xattrs = names.map(|name| (name.to_vec(), fs.getxattr(ino, name).unwrap().into_owned())).collect();
    let content = match attr.kind {
        Kind::File => content(fs, ino),
        Kind::Symlink => fs.readlink(ino).unwrap().into_owned(),
        _ => Vec::new(),
    };
    let mtime = if attr.kind == Kind::Dir { 0 } else { attr.mtime.sec };
    let fields = (attr.kind, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.size, mtime);
    all.insert(path.clone(), InodeState { ino, attr: fields, content, xattrs });
    if attr.kind != Kind::Dir {
        return;
    }
    let mut entries = Vec::new();
    fs.readdirplus(ino, 2, |entry, attr| {
        assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind));
        entries.push((entry.name.to_vec(), entry.ino));
        false
    })
    .unwrap();
    let mut subdirs = 0;
    for (name, child) in entries {
        let found = fs.lookup(ino, &name).unwrap();
        assert_eq!(found.ino, child, "a listing and a lookup differ");
        subdirs += u32::from(found.kind == Kind::Dir);
        record_inode(fs, child, format!("{path}/{}", name.escape_ascii()), all);
    }
    assert_eq!(attr.nlink, 2 + subdirs, "the link count of directory `{path}`");
}

//! Sources of `COPY`, `ADD` and bind mounts: the build context, an image or a stage, and single files. All are trees
//! that are read the same way.

use super::patterns::Patterns;
use crate::browse;
use crate::container::rootfs::Rootfs;
use crate::fs::{Fs, Ino};
use crate::layer::Xattr;
use crate::meta::{Kind, Time};
use crate::sys;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many bytes of a file one read takes.
const PIECE: usize = 128 << 10;
/// A tree of files.
pub enum Tree {
    /// A directory of the host.
    Disk(Disk),
    /// An image, or one layer.
    Image(Box<Fs>),
}

/// A directory of the host, of which some paths are ignored.
pub struct Disk {
    root: Rootfs,
    /// Its path without symbolic links.
    base: PathBuf,
    ignored: Patterns,
    /// The directories that were listed: a build sees the context as it was first.
    listed: Mutex<HashMap<PathBuf, Listing>>,
}

/// The names and inodes of a directory, sorted by name.
pub type Listing = Arc<Vec<(Vec<u8>, Node)>>;

/// An inode of a tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its path in the tree, relative to the root.
    pub path: Vec<u8>,
    /// Its kind.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner; root for a file of the host.
    pub uid: u32,
    /// Group; root for a file of the host.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Size in bytes.
    pub size: u64,
    /// Device number of a device.
    pub rdev: u32,
    /// What all names of the same inode have in common, if it has several.
    pub links: Option<(u64, u64)>,
    /// The extended attributes of a file of the host that belong into an image, sorted.
    xattrs: Vec<Xattr>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(PathBuf),
    Inode(Ino),
}

impl Node {
    /// The path of a regular file on the host.
    pub fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) if self.kind == Kind::File => Some(path),
            _ => None,
        }
    }
}

impl Disk {
    /// Opens a directory.
    pub fn open(path: &Path, ignored: Patterns) -> io::Result<Disk> {
        Ok(Disk { root: Rootfs::open(path)?, base: path.canonicalize()?, ignored, listed: Mutex::default() })
    }

    fn node(&self, path: PathBuf) -> io::Result<Node> {
        let meta = fs::symlink_metadata(&path)?;
        let kind = Kind::of(meta.mode()).ok_or_else(|| io::Error::other("its type is not known"))?;
        let inside = path.strip_prefix(&self.base).unwrap_or(Path::new(""));
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        Ok(Node {
            path: inside.as_os_str().as_bytes().to_vec(),
            kind,
            mode: meta.mode() & 0o7777,
            uid: 0,
            gid: 0,
            mtime: Time { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 },
            size: if kind == Kind::File { meta.len() } else { 0 },
            rdev: crate::meta::device(major, minor).unwrap_or_default(),
            links: (kind != Kind::Dir && meta.nlink() > 1).then(|| (meta.dev(), meta.ino())),
            xattrs: xattrs_of(&path)?,
            place: Place::Disk(path),
        })
    }
}

impl Disk {
    fn list(&self, path: &Path) -> Result<Vec<(Vec<u8>, Node)>, String> {
        let mut all = Vec::new();
        for entry in fs::read_dir(path).map_err(|e| sys::describe(&e))? {
            let entry = entry.map_err(|e| sys::describe(&e))?;
            let node = match self.node(entry.path()) {
                // It was removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                node => node.map_err(|e| format!("{}: {}", entry.path().display(), sys::describe(&e)))?,
            };
            if !self.ignored.exclude(&node.path) || node.kind == Kind::Dir && self.ignored.have_exceptions() {
                all.push((entry.file_name().into_vec(), node));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }
}

fn list_image(fs: &Fs, dir: &Node, ino: Ino) -> Result<Vec<(Vec<u8>, Node)>, String> {
    let mut found = Vec::new();
    let listed = fs.readdir(ino, 0, |entry| {
        if !matches!(entry.name, b"." | b"..") {
            found.push((entry.name.to_vec(), entry.ino));
        }
        false
    });
    listed.map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    for (name, ino) in found {
        let attr = fs.getattr(ino).map_err(|e| e.to_string())?;
        let path = if dir.path.is_empty() { name.clone() } else { [&dir.path[..], b"/", &name].concat() };
        all.push((name, image_node(path, &attr)));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

impl Tree {
    /// Returns the inode at a path, whose symbolic links lead nowhere out of the tree; `None` if there is none.
    pub fn find(&self, path: &[u8]) -> Result<Option<Node>, String> {
        match self {
            Tree::Disk(disk) => {
                let place = match disk.root.locate(Path::new(std::ffi::OsStr::from_bytes(path))) {
                    Ok(place) => place,
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        return Ok(None);
                    }
                    Err(e) => return Err(sys::describe(&e)),
                };
                let real = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()));
                let node = real.and_then(|real| disk.node(real)).map_err(|e| sys::describe(&e))?;
                let hidden =
                    disk.ignored.exclude(&node.path) && !(node.kind == Kind::Dir && disk.ignored.have_exceptions());
                Ok((node.path.is_empty() || !hidden).then_some(node))
            }
            Tree::Image(fs) => match browse::resolve(fs, path, true) {
                Ok(attr) => Ok(Some(image_node(path.to_vec(), &attr))),
                Err(browse::PathError::NotFound | browse::PathError::NotDir) => Ok(None),
                Err(e) => Err(e.to_string()),
            },
        }
    }

    /// Lists a directory, sorted by name: names and inodes. Ignored directories are listed if something in them may not
    /// be ignored; [`Tree::is_ignored`] tells.
    pub fn list(&self, dir: &Node) -> Result<Listing, String> {
        match (self, &dir.place) {
            (Tree::Disk(disk), Place::Disk(path)) => {
                if let Some(known) = disk.listed.lock().get(path) {
                    return Ok(Arc::clone(known));
                }
                let all = Arc::new(disk.list(path)?);
                disk.listed.lock().insert(path.clone(), Arc::clone(&all));
                Ok(all)
            }
            (Tree::Image(fs), Place::Inode(ino)) => Ok(Arc::new(list_image(fs, dir, *ino)?)),
            _ => Err("an inode of another tree".into()),
        }
    }

    /// Whether the inode is ignored, if not for something in it.
    pub fn is_ignored(&self, node: &Node) -> bool {
        matches!(self, Tree::Disk(disk) if disk.ignored.exclude(&node.path))
    }

    /// Returns the target of a symbolic link.
    pub fn target(&self, node: &Node) -> Result<Vec<u8>, String> {
        match (self, &node.place) {
            (Tree::Disk(_), Place::Disk(path)) => {
                fs::read_link(path).map(|target| target.into_os_string().into_vec()).map_err(|e| sys::describe(&e))
            }
            (Tree::Image(fs), Place::Inode(ino)) => Ok(fs.readlink(*ino).map_err(|e| e.to_string())?.into_owned()),
            _ => Err("an inode of another tree".into()),
        }
    }

    /// Returns the extended attributes that belong into an image, sorted.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, String> {
        let mut all = Vec::new();
        match (self, &node.place) {
            (Tree::Disk(_), _) => return Ok(node.xattrs.clone()),
            (Tree::Image(fs), Place::Inode(ino)) => {
                let names = fs.listxattr(*ino, true).map_err(|e| e.to_string())?;
                for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                    let value = fs.getxattr(*ino, name).map_err(|e| e.to_string())?.into_owned();
                    all.push((name.to_vec(), value));
                }
            }
            _ => return Err("an inode of another tree".into()),
        }
        all.sort();
        Ok(all)
    }

    /// Reads a file, which must have exactly the size of its inode.
    pub fn read(&self, node: &Node, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let changed = || io::Error::other("it was changed while it was read");
        match (self, &node.place) {
            (Tree::Disk(_), Place::Disk(path)) => {
                let mut file = File::open(path)?;
                let mut buffer = vec![0; PIECE.min(node.size as usize + 1)];
                let mut left = node.size;
                loop {
                    let n = file.read(&mut buffer)?;
                    left = left.checked_sub(n as u64).ok_or_else(changed)?;
                    match n {
                        0 if left > 0 => return Err(changed()),
                        0 => return Ok(()),
                        n => take(&buffer[..n])?,
                    }
                }
            }
            (Tree::Image(fs), Place::Inode(ino)) => {
                let mut at = 0;
                while at < node.size {
                    let most = (node.size - at).min(1 << 20) as u32;
                    let bytes = fs.read(*ino, at, most).map_err(io::Error::other)?;
                    if bytes.is_empty() {
                        return Err(changed());
                    }
                    take(&bytes)?;
                    at += bytes.len() as u64;
                }
                Ok(())
            }
            _ => Err(io::Error::other("an inode of another tree")),
        }
    }
}

/// Reads the extended attributes of a file of the host that belong into an image. Others are the host's: its security
/// labels, and access control lists with its users.
fn xattrs_of(path: &Path) -> io::Result<Vec<Xattr>> {
    let mut names = [0; 4096];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut all = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name.starts_with(b"user.") || name == b"security.capability" {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
            value.truncate(length);
            all.push((name.to_vec(), value));
        }
    }
    all.sort();
    Ok(all)
}

fn image_node(path: Vec<u8>, attr: &crate::fs::Attr) -> Node {
    Node {
        path,
        kind: attr.kind,
        mode: attr.mode.into(),
        uid: attr.uid,
        gid: attr.gid,
        mtime: attr.mtime,
        size: if attr.kind == Kind::File { attr.size } else { 0 },
        rdev: attr.rdev,
        links: (attr.kind != Kind::Dir && attr.nlink > 1).then_some((0, attr.ino)),
        xattrs: Vec::new(),
        place: Place::Inode(attr.ino),
    }
}

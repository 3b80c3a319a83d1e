//! Entries of a new layer, made without a mount: written as a tar, and digested for the build cache.

use super::source::{Node, Tree};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::{Meta, Packed, Packer, Xattr};
use crate::meta::{Kind, Time};
use crate::name::show;
use crate::whiteout::check_name;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::Arc;

/// An entry of a layer.
#[derive(Clone)]
pub struct Item {
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes, sorted.
    pub xattrs: Vec<Xattr>,
    /// Its kind and content.
    pub what: What,
}

/// The kind and content of an entry.
#[derive(Clone)]
pub enum What {
    /// A directory.
    Dir,
    /// A directory that the layers below have, with the same attributes.
    Known,
    /// A regular file of a tree.
    File(Arc<Tree>, Node),
    /// A regular file with this content.
    Bytes(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A device of that number, or a named pipe.
    Special(Kind, u32),
}

/// The entries of a layer by path, which is relative to the root; that of the root is empty.
pub type Items = BTreeMap<Vec<u8>, Item>;

/// Digests of the data of files, by tree and path, so that no file is read twice.
#[derive(Default)]
pub struct DataDigests(HashMap<(usize, Vec<u8>), Digest>);

impl DataDigests {
    fn key(tree: &Arc<Tree>, node: &Node) -> (usize, Vec<u8>) {
        (Arc::as_ptr(tree) as usize, node.path.clone())
    }

    /// Notes the digest of a file that was read.
    pub fn note(&mut self, tree: &Arc<Tree>, node: &Node, digest: Digest) {
        self.0.insert(DataDigests::key(tree, node), digest);
    }

    fn of(&mut self, tree: &Arc<Tree>, node: &Node) -> io::Result<Digest> {
        let key = DataDigests::key(tree, node);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        tree.read(node, |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        let digest = hasher.finish();
        self.0.insert(key, digest.clone());
        Ok(digest)
    }
}

/// Returns a digest of all entries, but not of times and the data of files. No file is read.
pub fn shape(items: &Items) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    items.iter().for_each(|(path, item)| summarize(&mut hasher, path, item));
    hasher.finish()
}

/// Returns a digest of all entries and the data of all files, but not of times.
pub fn content(items: &Items, data: &mut DataDigests) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for (path, item) in items {
        summarize(&mut hasher, path, item);
        let digest = match &item.what {
            What::File(tree, node) => data.of(tree, node).map_err(named(path))?,
            What::Bytes(bytes) => Digest::of(bytes),
            _ => continue,
        };
        hasher.update(digest.hex().as_bytes());
    }
    Ok(hasher.finish())
}

/// Writes the entries as a tar, with modification times up to `newest`, in seconds. `data` gets the digests of the data
/// that was written.
pub fn write<W: Write>(items: &Items, newest: Option<i64>, out: W, data: &mut DataDigests) -> io::Result<W> {
    let mut tar = Packer::new(out);
    // The first name of each inode with several, and the digest of its data.
    let mut first_names: HashMap<(usize, u64, u64), (&[u8], Digest)> = HashMap::new();
    let newest = newest.map(|sec| Time { sec, nsec: 0 });
    for (path, item) in items {
        let mtime = newest.map_or(item.mtime, |newest| item.mtime.min(newest));
        let meta = Meta { mode: item.mode, uid: item.uid, gid: item.gid, mtime, xattrs: item.xattrs.clone() };
        let name = if path.is_empty() { &b"./"[..] } else { path };
        match &item.what {
            What::Dir | What::Known => tar.entry(name, &meta, Packed::Dir)?,
            What::Symlink(target) => tar.entry(name, &meta, Packed::Symlink(target))?,
            What::Special(Kind::Fifo, _) => tar.entry(name, &meta, Packed::Fifo)?,
            What::Special(kind, number) => tar.entry(name, &meta, Packed::Device(*kind, *number))?,
            What::Bytes(bytes) => {
                tar.entry(name, &meta, Packed::File(bytes.len() as u64))?;
                tar.data(bytes)?;
            }
            What::File(tree, node) => {
                let link = node.links.map(|(device, number)| (Arc::as_ptr(tree) as usize, device, number));
                if let Some((first, digest)) = link.and_then(|link| first_names.get(&link)) {
                    tar.entry(name, &meta, Packed::Link(first))?;
                    data.note(tree, node, digest.clone());
                    continue;
                }
                tar.entry(name, &meta, Packed::File(node.size))?;
                let mut hasher = Hasher::new(Algorithm::Sha256);
                let written = tree.read(node, |bytes| {
                    hasher.update(bytes);
                    tar.data(bytes)
                });
                written.map_err(named(path))?;
                let digest = hasher.finish();
                first_names.extend(link.map(|link| (link, (&path[..], digest.clone()))));
                data.note(tree, node, digest);
            }
        }
    }
    tar.finish()
}

/// Fails if a path cannot be in a layer.
pub fn check(items: &Items) -> Result<(), String> {
    for path in items.keys() {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        check_name(name).map_err(|why| format!("/{} cannot be in a layer: {why}", show(path)))?;
    }
    Ok(())
}

fn named(path: &[u8]) -> impl FnOnce(io::Error) -> io::Error {
    let path = show(path);
    move |e| io::Error::new(e.kind(), format!("/{path}: {}", crate::sys::describe(&e)))
}

/// Adds an entry to a digest; of a file only its size.
fn summarize(hasher: &mut Hasher, path: &[u8], item: &Item) {
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let (kind, number, bytes): (Kind, u64, &[u8]) = match &item.what {
        // They change nothing.
        What::Known => return,
        What::Dir => (Kind::Dir, 0, b""),
        What::File(_, node) => (Kind::File, node.size, if node.links.is_some() { b"linked" } else { b"" }),
        What::Bytes(bytes) => (Kind::File, bytes.len() as u64, b""),
        What::Symlink(target) => (Kind::Symlink, 0, target),
        What::Special(kind, number) => (*kind, u64::from(*number), b""),
    };
    part(path);
    for number in [kind.bits().into(), item.mode.into(), item.uid.into(), item.gid.into(), number] {
        part(&u64::to_le_bytes(number));
    }
    part(bytes);
    part(&(item.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &item.xattrs {
        part(name);
        part(value);
    }
}

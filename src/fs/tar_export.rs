//! Tar entries of a file system tree: attributes, data, and further names as hard links.

use super::changes::is_label;
use super::{Attr, Fs, FsError, Ino};
use crate::layer::{Meta, Packed, Packer};
use crate::meta::{Kind, Time};
use crate::name::show;
use crate::whiteout::NoName;
use std::collections::HashMap;
use std::io::{self, Write};

/// An error of writing a tree as a tar.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An inode of the tree cannot be read.
    #[error("cannot read /{}: {cause}", show(.path))]
    Read {
        /// Its path.
        path: Vec<u8>,
        /// The error.
        cause: FsError,
    },
    /// A file was truncated while it was read.
    #[error("/{} shrank while it was read", show(.0))]
    Shorter(Vec<u8>),
    /// A name cannot be in a layer.
    #[error("/{} cannot be in a layer: {why}", show(.path))]
    Name {
        /// Its path.
        path: Vec<u8>,
        /// The reason.
        why: NoName,
    },
    /// The tar cannot be written.
    #[error("cannot write the archive: {0}")]
    Output(#[from] io::Error),
}

/// How many bytes of a file one read takes.
const PIECE: u32 = 1 << 20;

/// What is changed or dropped on export.
#[derive(Clone, Copy, Default)]
pub(super) struct Rules {
    /// The latest modification time; later ones are capped.
    pub newest: Option<Time>,
    /// Whether security labels of the host are dropped.
    pub without_labels: bool,
}

/// A writer of tar entries for a tree.
pub(super) struct Entries<'a, W> {
    fs: &'a Fs,
    out: Packer<W>,
    rules: Rules,
    /// The first name of each inode with several hard links.
    first_names: HashMap<Ino, Vec<u8>>,
    /// What tar cannot express, one line each.
    lost: Vec<String>,
}

impl<'a, W: Write> Entries<'a, W> {
    /// Creates a writer without entries.
    pub fn new(fs: &'a Fs, out: W, rules: Rules) -> Self {
        Entries { fs, out: Packer::new(out), rules, first_names: HashMap::new(), lost: Vec::new() }
    }

    /// Writes one inode under a path relative to the root, whose path is empty. Further names of an inode become hard
    /// links to the first. Sockets are skipped: tar has no type for them.
    pub fn entry(&mut self, path: &[u8], attr: &Attr) -> Result<(), ExportError> {
        let failed = |cause| ExportError::Read { path: path.to_vec(), cause };
        let name = if path.is_empty() { b"./" } else { path };
        let meta = self.meta(path, attr).map_err(failed)?;
        let has_several = attr.kind != Kind::Dir && attr.nlink > 1;
        if let Some(first) = self.first_names.get(&attr.ino).filter(|_| has_several) {
            return Ok(self.out.entry(name, &meta, Packed::Link(first))?);
        }
        let target;
        let what = match attr.kind {
            Kind::Dir => Packed::Dir,
            Kind::File => Packed::File(attr.size),
            Kind::Symlink => {
                target = self.fs.readlink(attr.ino).map_err(failed)?;
                Packed::Symlink(&target)
            }
            Kind::Char | Kind::Block => Packed::Device(attr.kind, attr.rdev),
            Kind::Fifo => Packed::Fifo,
            Kind::Socket => return Ok(()),
        };
        self.out.entry(name, &meta, what)?;
        if has_several {
            self.first_names.insert(attr.ino, path.to_vec());
        }
        if attr.kind == Kind::File { self.data(path, attr) } else { Ok(()) }
    }

    fn data(&mut self, path: &[u8], attr: &Attr) -> Result<(), ExportError> {
        let mut at = 0;
        while at < attr.size {
            let most = u64::from(PIECE).min(attr.size - at) as u32;
            let read = self.fs.read(attr.ino, at, most);
            let bytes = read.map_err(|cause| ExportError::Read { path: path.to_vec(), cause })?;
            if bytes.is_empty() {
                return Err(ExportError::Shorter(path.to_vec()));
            }
            self.out.data(&bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes an empty file whose name is the message: a whiteout or an opaque marker.
    pub fn marker(&mut self, path: &[u8]) -> Result<(), ExportError> {
        Ok(self.out.entry(path, &Meta::default(), Packed::File(0))?)
    }

    /// Ends the tar. Returns the underlying writer, and what was dropped, one line each.
    pub fn finish(self) -> io::Result<(W, Vec<String>)> {
        Ok((self.out.finish()?, self.lost))
    }

    fn meta(&mut self, path: &[u8], attr: &Attr) -> Result<Meta, FsError> {
        let names = self.fs.listxattr(attr.ino, true)?;
        let mut xattrs = Vec::new();
        for name in names.split(|byte| *byte == 0) {
            if name.is_empty() || self.rules.without_labels && is_label(name) {
                continue;
            }
            let value = self.fs.getxattr(attr.ino, name)?.into_owned();
            if value.is_empty() {
                self.lost.push(format!("/{}: the attribute {} is empty and is left out", show(path), show(name)));
            }
            xattrs.push((name.to_vec(), value));
        }
        // File systems list extended attributes in any order.
        xattrs.sort();
        let mtime = self.rules.newest.map_or(attr.mtime, |newest| attr.mtime.min(newest));
        Ok(Meta { mode: attr.mode.into(), uid: attr.uid, gid: attr.gid, mtime, xattrs })
    }
}

//! Writing what is seen of a tree into a tar, entry by entry: attributes, data, and further names as hard links.

use super::changes::is_label;
use super::export::ExportError;
use super::{Attr, Fs, FsError, Ino};
use crate::layer::{Meta, Packed, Packer};
use crate::meta::{Kind, Time};
use crate::name::show;
use std::collections::HashMap;
use std::io::{self, Write};

/// How much of a file is read at once.
const PIECE: u32 = 1 << 20;

/// What is not to be written as it is seen.
#[derive(Clone, Copy, Default)]
pub(super) struct Rules {
    /// No modification time is later than this.
    pub newest: Option<Time>,
    /// Whether the running system's own labels are left out.
    pub without_labels: bool,
}

/// A tar of a tree's entries.
pub(super) struct Entries<'a, W> {
    fs: &'a Fs,
    out: Packer<W>,
    rules: Rules,
    /// The first name of each inode that has several.
    first_names: HashMap<Ino, Vec<u8>>,
    /// What no tar can say, a line each.
    lost: Vec<String>,
}

impl<'a, W: Write> Entries<'a, W> {
    /// Without entries yet.
    pub fn new(fs: &'a Fs, out: W, rules: Rules) -> Self {
        Entries { fs, out: Packer::new(out), rules, first_names: HashMap::new(), lost: Vec::new() }
    }

    /// One inode under one path from the root, which is the empty one. The second and further names of an inode become
    /// hard links to the first. Sockets are left out: a tar cannot have them.
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

    /// An empty file that means something by its name alone.
    pub fn marker(&mut self, path: &[u8]) -> Result<(), ExportError> {
        Ok(self.out.entry(path, &Meta::default(), Packed::File(0))?)
    }

    /// Ends the tar. Gives back what it was written to, and what was lost, a line each.
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
        // The order in which a file system lists them is its own.
        xattrs.sort();
        let mtime = self.rules.newest.map_or(attr.mtime, |newest| attr.mtime.min(newest));
        Ok(Meta { mode: attr.mode.into(), uid: attr.uid, gid: attr.gid, mtime, xattrs })
    }
}

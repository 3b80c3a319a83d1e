//! A whole tree as one tar.

use super::{Attr, Fs, FsError, Ino, ROOT};
use crate::layer::{Meta, Packed, Packer};
use crate::meta::Kind;
use crate::name::show;
use std::collections::HashMap;
use std::io::{self, Write};

/// How much of a file is read at once.
const PIECE: u32 = 1 << 20;

/// Why a tree could not be written as a tar.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something in it cannot be read.
    #[error("cannot read /{}: {cause}", show(.path))]
    Read {
        /// Where it is.
        path: Vec<u8>,
        /// Why not.
        cause: FsError,
    },
    /// The tar cannot be written.
    #[error("cannot write the archive: {0}")]
    Output(#[from] io::Error),
}

/// Writes everything that is seen: the root directory first, then each directory before what is in it, sorted by name.
/// The second and further names of a file are hard links to its first. Sockets are left out: a tar cannot have them.
pub fn export<W: Write>(fs: &Fs, out: W) -> Result<W, ExportError> {
    let mut export = Export { fs, out: Packer::new(out), first_names: HashMap::new() };
    // A stack of its own: a tree may be thousands of directories deep.
    let mut todo: Vec<(Vec<u8>, Ino)> = vec![(Vec::new(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let failed = |cause| ExportError::Read { path: path.clone(), cause };
        let attr = fs.getattr(ino).map_err(failed)?;
        export.entry(&path, &attr)?;
        if attr.kind == Kind::Dir {
            let mut below = entries(fs, ino).map_err(failed)?;
            below.sort_by(|a, b| b.0.cmp(&a.0));
            let inside = |name: Vec<u8>| if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
            todo.extend(below.into_iter().map(|(name, ino)| (inside(name), ino)));
        }
    }
    Ok(export.out.finish()?)
}

fn entries(fs: &Fs, dir: Ino) -> Result<Vec<(Vec<u8>, Ino)>, FsError> {
    let mut found = Vec::new();
    fs.readdir(dir, 0, |entry| {
        if !matches!(entry.name, b"." | b"..") {
            found.push((entry.name.to_vec(), entry.ino));
        }
        false
    })?;
    Ok(found)
}

struct Export<'a, W> {
    fs: &'a Fs,
    out: Packer<W>,
    /// The first name of each inode that has several.
    first_names: HashMap<Ino, Vec<u8>>,
}

impl<W: Write> Export<'_, W> {
    fn entry(&mut self, path: &[u8], attr: &Attr) -> Result<(), ExportError> {
        let failed = |cause| ExportError::Read { path: path.to_vec(), cause };
        let name = if path.is_empty() { b"./" } else { path };
        if attr.kind != Kind::Dir && attr.nlink > 1 {
            if let Some(first) = self.first_names.get(&attr.ino) {
                return Ok(self.out.entry(name, &Meta::default(), Packed::Link(first))?);
            }
            self.first_names.insert(attr.ino, path.to_vec());
        }
        let meta = self.meta(attr).map_err(failed)?;
        let what = match attr.kind {
            Kind::Dir => Packed::Dir,
            Kind::File => Packed::File(attr.size),
            Kind::Symlink => {
                let target = self.fs.readlink(attr.ino).map_err(failed)?;
                return Ok(self.out.entry(name, &meta, Packed::Symlink(&target))?);
            }
            Kind::Char | Kind::Block => Packed::Device(attr.kind, attr.rdev),
            Kind::Fifo => Packed::Fifo,
            Kind::Socket => return Ok(()),
        };
        self.out.entry(name, &meta, what)?;
        let mut at = 0;
        while attr.kind == Kind::File && at < attr.size {
            let bytes = self.fs.read(attr.ino, at, PIECE).map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            self.out.data(&bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn meta(&self, attr: &Attr) -> Result<Meta, FsError> {
        let names = self.fs.listxattr(attr.ino, true)?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let xattrs = names.map(|name| Ok((name.to_vec(), self.fs.getxattr(attr.ino, name)?.into_owned())));
        Ok(Meta {
            mode: attr.mode.into(),
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            xattrs: xattrs.collect::<Result<_, FsError>>()?,
        })
    }
}

//! Reading, seeking and extents of files in lower directories.

use super::{Leaf, LowerDirs, Node, Place};
use crate::backing::{Backing, Handle, ReadOnly};
use crate::fs::lower_types::Piece;
use crate::fs::{FsError, Ino};
use crate::meta::Kind;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The most bytes that one read returns.
const MAX_READ: u32 = 1 << 20;

impl LowerDirs {
    fn leaf(&self, ino: Ino) -> Result<Arc<Leaf>, FsError> {
        match self.node(ino)? {
            Node::Leaf(leaf) => Ok(leaf),
            Node::Dir(_) => Err(FsError::IsDir),
        }
    }

    /// Returns the open descriptor of a file's data.
    fn file(&self, ino: Ino) -> Result<Handle, FsError> {
        let key = ino << 1;
        if let Some(open) = self.open.get(key) {
            return Ok(open);
        }
        let leaf = self.leaf(ino)?;
        if leaf.kind != Kind::File {
            return Err(FsError::WrongType);
        }
        let opened = self.open_data(&leaf.place)?;
        self.open.put(key, opened.clone());
        Ok(opened)
    }

    /// Opens a file's data; for a metacopy, that is a file of a lower layer.
    fn open_data(&self, place: &Place) -> Result<Handle, FsError> {
        let parts = &self.loaded(&place.dir)?.sources;
        let first = parts.iter().position(|source| source.id == place.source.id).unwrap_or_default();
        let (mut dirs, mut name) = (parts[first..].to_vec(), place.name.to_vec());
        loop {
            let source = &dirs[0];
            let layer = &self.layers[source.layer];
            let file = layer.open_file(self.handle(source)?.as_fd(), &name)?;
            if source.layer == 0 {
                return Ok(file);
            }
            let Some(redirect) = layer.data_elsewhere(file.as_fd())? else { return Ok(file) };
            let wanted = redirect.unwrap_or_else(|| name.clone());
            let found = self.moved(source.layer, &dirs, &wanted)?.filter(|found| found.kind == Kind::File);
            let Some(found) = found else {
                tracing::error!("the data of `{}` belongs to a file that no layer has", crate::name::show(&name));
                return Err(FsError::Damaged("no layer has the file's data"));
            };
            name = wanted.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
            dirs = found.holders;
        }
    }

    /// [`crate::fs::Fs::read`].
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Vec<u8>, FsError> {
        let file = self.file(ino)?;
        Ok(ReadOnly.read_most(file.as_fd(), offset, size.min(MAX_READ) as usize)?)
    }

    /// Returns the start of the next data (or the next hole) at or after `offset`.
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        Ok(ReadOnly.seek(self.file(ino)?.as_fd(), offset, hole)?)
    }

    /// Returns a file's data extents, ascending, without holes.
    pub fn pieces(&self, ino: Ino) -> Result<Vec<Piece>, FsError> {
        let file = self.file(ino)?;
        let (mut pieces, mut at) = (Vec::new(), 0);
        loop {
            let offset = match ReadOnly.seek(file.as_fd(), at, false) {
                Ok(offset) => offset,
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NXIO) => return Ok(pieces),
                Err(e) => return Err(e.into()),
            };
            at = ReadOnly.seek(file.as_fd(), offset, true)?;
            pieces.push(Piece { file: file.clone(), offset, logical: offset, len: at - offset });
        }
    }

    /// Returns a symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let leaf = self.leaf(ino).map_err(|_| FsError::WrongType)?;
        if leaf.kind != Kind::Symlink {
            return Err(FsError::WrongType);
        }
        let source = &leaf.place.source;
        Ok(self.layers[source.layer].readlink_at(self.handle(source)?.as_fd(), &leaf.place.name)?)
    }
}

//! Reading, seeking and extents of an image's files.

use super::Image;
use crate::backing::read_exact;
use crate::fs::lower_types::Piece;
use crate::fs::{FsError, Ino};
use crate::layer::{Extent, IndexError, Node, node_flags};
use crate::meta::Kind;
use std::borrow::Cow;
use std::os::fd::AsFd;

/// The most bytes that one read returns. FUSE never asks for more than 1 MiB (256 pages), and the reply for a file with
/// holes is assembled in memory.
const MAX_READ: u64 = 1 << 20;

impl Image {
    /// Reads up to `size` bytes of a file at `offset`; fewer only at its end. Data that is contiguous in a layer's tar
    /// is returned as a slice of the mapping, unread, so a disk fault shows where the slice is used; the rest is
    /// assembled in memory.
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Cow<'_, [u8]>, FsError> {
        let node = self.file(ino)?;
        let size = u64::from(size).min(MAX_READ).min(node.size.get().saturating_sub(offset));
        if size == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        if !node.has(node_flags::SPARSE) {
            return self.piece(node, node.data.get().saturating_add(offset), size).map(Cow::Borrowed);
        }
        let mut bytes = vec![0; size as usize];
        let extents = self.tree.extents(node)?;
        let first = extents.partition_point(|e| end(e) <= offset);
        for extent in extents[first..].iter().take_while(|e| e.logical.get() < offset + size) {
            let from = extent.logical.get().max(offset);
            let to = end(extent).min(offset + size);
            let within = (from - offset) as usize..to.saturating_sub(offset) as usize;
            let target = bytes.get_mut(within).ok_or(IndexError::Damaged("extents overlap"))?;
            let at = extent.offset.get().saturating_add(from - extent.logical.get());
            read_exact(self.layer(node)?.file.as_fd(), target, at)?;
        }
        Ok(Cow::Owned(bytes))
    }

    /// Returns the start of the next data (or the next hole) at or after `offset`; the end of the file counts as a hole
    /// (lseek(2)).
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        let node = self.file(ino)?;
        let size = node.size.get();
        if offset >= size {
            return Err(FsError::NoData);
        }
        if !node.has(node_flags::SPARSE) {
            return Ok(if hole { size } else { offset });
        }
        let extents = self.tree.extents(node)?;
        let next = extents.get(extents.partition_point(|e| end(e) <= offset));
        if hole {
            // The index has no adjacent extents, so the end of one is the start of a hole.
            return Ok(next.filter(|e| e.logical.get() <= offset).map_or(offset, end).min(size));
        }
        next.map(|e| e.logical.get().max(offset)).ok_or(FsError::NoData)
    }

    /// Returns a file's data extents, ascending, without holes.
    pub fn pieces(&self, ino: Ino) -> Result<Vec<Piece>, FsError> {
        let node = self.file(ino)?;
        let tar = &self.layer(node)?.file;
        if !node.has(node_flags::SPARSE) {
            return Ok(vec![Piece { file: tar.clone(), offset: node.data.get(), logical: 0, len: node.size.get() }]);
        }
        let piece = |e: &Extent| Piece {
            file: tar.clone(),
            offset: e.offset.get(),
            logical: e.logical.get(),
            len: e.len.get(),
        };
        Ok(self.tree.extents(node)?.iter().map(piece).collect())
    }

    fn file(&self, ino: Ino) -> Result<&Node, FsError> {
        let node = self.node(ino)?;
        match node.kind() {
            Some(Kind::File) => Ok(node),
            Some(Kind::Dir) => Err(FsError::IsDir),
            _ => Err(FsError::WrongType),
        }
    }

    fn piece(&self, node: &Node, offset: u64, size: u64) -> Result<&[u8], FsError> {
        let bytes = &self.layer(node)?.bytes;
        let range = offset as usize..offset.saturating_add(size) as usize;
        bytes.get(range).ok_or(IndexError::Damaged("a file's data lies outside of its layer").into())
    }

    fn layer(&self, node: &Node) -> Result<&super::Data, FsError> {
        self.layers
            .get(usize::from(node.layer.get()))
            .ok_or(IndexError::Damaged("the file's layer does not exist").into())
    }
}

fn end(extent: &Extent) -> u64 {
    extent.logical.get().saturating_add(extent.len.get())
}

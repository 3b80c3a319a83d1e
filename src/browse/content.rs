//! Contents of files of single layers, read from the layers' tars.

use super::layers::{Layers, Place};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::{IndexError, node_flags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Computes the SHA-256 of a regular file of a layer; `tars` are the layers' tars, bottom first. Holes are zeros.
pub fn digest(layers: &Layers, tars: &[File], file: Place) -> io::Result<Digest> {
    let damaged = |error: IndexError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let node = layers.node(file).map_err(damaged)?;
    let tar = tars.get(file.layer).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let mut reader = Reader { tar, hasher: Hasher::new(Algorithm::Sha256), buffer: vec![0; PIECE] };
    let mut at = 0;
    if node.has(node_flags::SPARSE) {
        for extent in layers.0[file.layer].extents(node).map_err(damaged)? {
            reader.zeros(extent.logical.get().saturating_sub(at));
            reader.data(extent.offset.get(), extent.len.get())?;
            at = extent.logical.get() + extent.len.get();
        }
        reader.zeros(node.size.get().saturating_sub(at));
    } else {
        reader.data(node.data.get(), node.size.get())?;
    }
    Ok(reader.hasher.finish())
}

struct Reader<'a> {
    tar: &'a File,
    hasher: Hasher,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn data(&mut self, mut offset: u64, mut left: u64) -> io::Result<()> {
        while left > 0 {
            let part = left.min(PIECE as u64) as usize;
            self.tar.read_exact_at(&mut self.buffer[..part], offset)?;
            self.hasher.update(&self.buffer[..part]);
            (offset, left) = (offset + part as u64, left - part as u64);
        }
        Ok(())
    }

    fn zeros(&mut self, mut left: u64) {
        self.buffer.fill(0);
        while left > 0 {
            let part = left.min(PIECE as u64) as usize;
            self.hasher.update(&self.buffer[..part]);
            left -= part as u64;
        }
    }
}

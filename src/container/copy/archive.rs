//! Tar archives as the destination (`TarWriter`) and as the source (`unpack`) of a copy.

use super::error::{CopyError, Result};
use super::{Content, Object, Sink};
use crate::layer::{Body, Limits, Meta, Packed, Packer, Reader};
use std::io::{self, BufRead, Write};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A sink that writes a tar archive.
pub(super) struct TarWriter<W> {
    out: Packer<W>,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(out: W) -> TarWriter<W> {
        TarWriter { out: Packer::new(out) }
    }

    /// Writes the end of the archive; returns the underlying writer.
    pub(super) fn end(self) -> Result<W> {
        self.out.finish().map_err(CopyError::Output)
    }

    fn data(&mut self, content: Content<'_>) -> io::Result<()> {
        let mut buffer = vec![0; ZEROS.len()];
        let mut at = 0;
        for (start, len) in content.pieces {
            self.zeros(start - at)?;
            at = start;
            while at < start + len {
                let most = (start + len - at).min(buffer.len() as u64) as usize;
                match content.data.read(&mut buffer[..most]) {
                    Ok(0) => return Err(io::Error::other("a file shrank while it was copied")),
                    Ok(n) => {
                        self.out.data(&buffer[..n])?;
                        at += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.zeros(content.size - at)
    }

    fn zeros(&mut self, mut left: u64) -> io::Result<()> {
        while left > 0 {
            let n = left.min(ZEROS.len() as u64);
            self.out.data(&ZEROS[..n as usize])?;
            left -= n;
        }
        Ok(())
    }
}

impl<W: Write> Sink for TarWriter<W> {
    fn put(&mut self, path: &[u8], meta: &Meta, what: Object<'_>) -> Result<()> {
        let packed = match &what {
            Object::Dir => Packed::Dir,
            Object::File(content) => Packed::File(content.size),
            Object::Symlink(target) => Packed::Symlink(target),
            Object::Link(first) => Packed::Link(first),
            Object::Device(kind, number) => Packed::Device(*kind, *number),
            Object::Fifo => Packed::Fifo,
        };
        self.out.entry(path, meta, packed).map_err(CopyError::Output)?;
        match what {
            Object::File(content) => self.data(content).map_err(CopyError::Output),
            _ => Ok(()),
        }
    }
}

/// Reads a tar archive and puts each entry into a sink.
pub(super) fn unpack(tar: &mut impl BufRead, sink: &mut dyn Sink) -> Result<()> {
    let limits = Limits::default();
    let mut reader = Reader::new(tar, &limits);
    while let Some(entry) = reader.next_entry()? {
        let meta = Meta {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.into_iter().collect(),
        };
        let what = match &entry.body {
            Body::Dir => Object::Dir,
            Body::File { size, .. } => {
                let pieces = vec![(0, *size)];
                Object::File(Content { size: *size, pieces, data: &mut reader })
            }
            Body::Sparse { size, extents } => {
                let pieces = extents.iter().map(|extent| (extent.logical.get(), extent.len.get())).collect();
                Object::File(Content { size: *size, pieces, data: &mut reader })
            }
            Body::Symlink(target) => Object::Symlink(target),
            Body::Link(first) => Object::Link(first),
            Body::Device(kind, number) => Object::Device(*kind, *number),
            Body::Fifo => Object::Fifo,
        };
        sink.put(&entry.path, &meta, what)?;
    }
    Ok(())
}

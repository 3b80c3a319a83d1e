//! A tar as a sink and as a source.

use super::{Content, CopyError, Result, Sink, What};
use crate::layer::{Body, Limits, Meta, Packed, Packer, Reader};
use std::io::{self, BufRead, Write};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes a tar.
pub(super) struct Packing<W> {
    out: Packer<W>,
}

impl<W: Write> Packing<W> {
    pub(super) fn new(out: W) -> Packing<W> {
        Packing { out: Packer::new(out) }
    }

    /// Ends the tar, and gives back what it was written to.
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
                    Ok(0) => return Err(io::Error::other("a file became shorter while it was copied")),
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

impl<W: Write> Sink for Packing<W> {
    fn put(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Result<()> {
        let packed = match &what {
            What::Dir => Packed::Dir,
            What::File(content) => Packed::File(content.size),
            What::Symlink(target) => Packed::Symlink(target),
            What::Link(first) => Packed::Link(first),
            What::Device(kind, number) => Packed::Device(*kind, *number),
            What::Fifo => Packed::Fifo,
        };
        self.out.entry(path, meta, packed).map_err(CopyError::Output)?;
        match what {
            What::File(content) => self.data(content).map_err(CopyError::Output),
            _ => Ok(()),
        }
    }
}

/// Gives what a tar has, entry by entry.
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
            Body::Dir => What::Dir,
            Body::File { size, .. } => {
                let pieces = vec![(0, *size)];
                What::File(Content { size: *size, pieces, data: &mut reader })
            }
            Body::Sparse { size, extents } => {
                let pieces = extents.iter().map(|extent| (extent.logical.get(), extent.len.get())).collect();
                What::File(Content { size: *size, pieces, data: &mut reader })
            }
            Body::Symlink(target) => What::Symlink(target),
            Body::Link(first) => What::Link(first),
            Body::Device(kind, number) => What::Device(*kind, *number),
            Body::Fifo => What::Fifo,
        };
        sink.put(&entry.path, &meta, what)?;
    }
    Ok(())
}

//! Memory-mapped files, read-only.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A byte buffer, either mapped from a file or owned.
pub enum Bytes {
    /// A private read-only mapping of a whole file.
    Mapped(memmap2::Mmap),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// Maps the whole of `file` for reading.
///
/// `file` must be a file of the store: those are published by rename when complete and never written or truncated
/// afterwards, which the soundness of the mapping requires; or a file without a name that this process has written and
/// does not write again. After a disk error, reading the mapping raises SIGBUS,
/// and a system call on a part of it fails with EFAULT.
pub fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::Owned(Vec::new()));
    }
    // SAFETY: a mapping is unsound only if its file changes under it; by this function's contract the files of the
    // store are immutable once they have a name, and their directory is private to the user (mode 0700).
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::Mapped(map))
}

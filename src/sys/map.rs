//! Read-only file mappings.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// Bytes that are either mapped from a file or owned.
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
/// Only files of the store may be given: they are published by rename when complete and never written or cut
/// afterwards, which is what a shared read of a mapping needs. An error of the disk under a mapping reaches a reader of
/// it as SIGBUS, and a system call that is handed a piece of it as EFAULT.
pub fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::Owned(Vec::new()));
    }
    // SAFETY: a mapping is unsound only if its file changes under it; by this function's contract the files of the
    // store are immutable once they have a name, and their directory is private to the user (mode 0700).
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::Mapped(map))
}

//! Stand-in.
use std::fs::File;
use std::io::{self, Read};

/// Bytes.
pub enum Bytes {
    /// Owned.
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let Bytes::Owned(v) = self;
        v
    }
}

/// Maps.
pub fn map(mut file: &File) -> io::Result<Bytes> {
    let mut v = Vec::new();
    file.read_to_end(&mut v)?;
    Ok(Bytes::Owned(v))
}

//! Types that an image, lower directories and a union share: names, directory items, extended attributes, data extents.

use super::Ino;
use crate::backing::Handle;
use crate::meta::Kind;
use std::sync::Arc;

/// A name in a directory.
pub type Name = Arc<[u8]>;

/// An object's extended attributes.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// A data extent of a file, and the file on disk that holds it.
pub struct Piece {
    /// The file on disk.
    pub file: Handle,
    /// Offset in the file on disk.
    pub offset: u64,
    /// Offset in the file.
    pub logical: u64,
    pub len: u64,
}

/// A directory item.
pub struct Item<'a> {
    pub name: &'a [u8],
    pub ino: Ino,
    pub kind: Kind,
}

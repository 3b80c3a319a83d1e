//! Layers: a tar with its index, or a lower directory. Read-only.
//!
//! [`index_tar`] reads a tar once, as a stream, and builds the index; [`Index`] reads one through a mapping. [`Packer`]
//! writes a tar, [`Reader`] reads one, entry by entry. [`DirLayer`] is an unpacked layer.

mod build;
mod check;
mod dir;
mod index;
mod pack;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use build::{Draft, index_tar};
pub use dir::{Contents as DirContents, DirLayer, Entry as DirEntry, StoredName, shown_names};
pub use index::{Dirent, Extent, FORMAT, Index, IndexError, Node, Of, WHITEOUT, Xattrs, index_flags, node_flags};
pub use pack::{Meta, Packed, Packer};
pub use pax::Xattr;
pub use reader::{Body, Entry, Reader};
pub use writer::{TooMany, Writer};

use crate::name::{NameError, show};
use crate::whiteout::InvalidWhiteout;
use std::io;

/// Limits of a layer. Every limit is far above real images and far below what would exhaust resources: a tar that
/// exceeds one is refused, never truncated.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries in one layer, and inodes, since a path creates the directories that it implies.
    pub entries: u64,
    /// Bytes of one extension header (PAX records, GNU long names). Go's archive/tar, which Docker reads layers with,
    /// has the same limit.
    pub extension: u64,
    /// Data extents of one sparse file.
    pub extents: usize,
    /// Bytes of all names, link targets, extended attributes and sparse maps in one layer; also of all symbolic link
    /// targets that are followed on the way to its entries.
    pub metadata: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 10_000_000, extension: 1 << 20, extents: 1 << 20, metadata: 2 << 30 }
    }
}

/// Why a tar cannot be used as a layer. The message names the entry; the caller names the layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The tar is truncated.
    #[error("the tar is truncated in {0}")]
    Truncated(String),
    /// Not a tar header at this offset.
    #[error("the tar is damaged at byte {offset}: {why}")]
    NotTar {
        /// Offset from the start of the tar.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// An entry that is invalid or contradicts another.
    #[error("entry `{}` {why}", show(.path))]
    Entry {
        /// The entry's path as the archive has it.
        path: Vec<u8>,
        /// What is wrong.
        why: EntryError,
    },
    /// A limit is exceeded, by no single entry.
    #[error("the layer {0}")]
    Limit(String),
}

/// Why an entry is invalid.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its documentation")]
pub enum EntryError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Whiteout(#[from] InvalidWhiteout),
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("is the root of the layer and is not a directory")]
    RootNotDir,
    #[error("lies in `{}`, which is not a directory", show(.0))]
    ParentNotDir(Vec<u8>),
    #[error("lies inside a whiteout")]
    InsideWhiteout,
    #[error("has too many symbolic links in its path")]
    SymlinkLoop,
    #[error("is a hard link to `{}`, which is a directory", show(.0))]
    LinkToDir(Vec<u8>),
    #[error("is a hard link that refers to itself through `{}`", show(.0))]
    LinkCycle(Vec<u8>),
    #[error("exceeds the layer's limit of {0} files and directories")]
    Inodes(u64),
    #[error("has a NUL byte in its link target")]
    TargetNul,
    #[error("is a link without a target")]
    NoTarget,
    #[error("has a link target of {0} bytes; the limit is 4095")]
    TargetTooLong(usize),
    #[error("has a header field that is not a number: {0}")]
    Number(&'static str),
    #[error("has an owner ID that exceeds 32 bits: {0}")]
    Owner(u64),
    #[error("exceeds the maximum file size: {0} bytes")]
    TooLarge(u64),
    #[error("is a device with an invalid number: {0}:{1}")]
    Device(u32, u32),
    #[error("has malformed PAX records")]
    Pax,
    #[error("has an extension header of {0} bytes; the limit is {1}")]
    Extension(u64, u64),
    #[error("has a malformed sparse map: {0}")]
    Sparse(&'static str),
    #[error("has more than {0} extents")]
    Extents(usize),
    #[error("has invalid extended attributes: {0}")]
    Xattr(&'static str),
    #[error("has the unknown type `{}`", .0.escape_ascii())]
    Type(u8),
}

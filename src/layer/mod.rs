//! One immutable layer: its tar, and the index that says what is where in it; or a plain directory.
//!
//! [`index_tar`] reads a tar once, as it streams by, and makes the index; [`Index`] reads one where it lies.
//! [`Packer`] writes a tar, entry by entry, and [`Reader`] reads one. [`DirLayer`] is a layer that was unpacked.

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

/// How much a layer may hold. Every bound is far above what real images have and far below what would hurt: a tar that
/// goes over one is refused, never cut.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries in one layer, and inodes, for a path makes the directories that it leads through.
    pub entries: u64,
    /// Bytes of one extension header (PAX records, GNU long names). Go's archive/tar, which Docker reads layers with,
    /// has the same bound.
    pub extension: u64,
    /// Pieces of one sparse file.
    pub extents: usize,
    /// Bytes of all names, link targets, extended attributes and sparse maps in one layer; also of the symbolic links'
    /// targets that are followed on the way to its entries.
    pub metadata: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 10_000_000, extension: 1 << 20, extents: 1 << 20, metadata: 2 << 30 }
    }
}

/// Why a tar is not a layer. The text names the entry; the caller names the layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The tar ends before it is complete.
    #[error("the tar is cut short in {0}")]
    Truncated(String),
    /// Something that is no tar header at this offset.
    #[error("the tar is damaged at byte {offset}: {why}")]
    NotTar {
        /// From the start of the tar.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// An entry that is wrong by itself or that contradicts another.
    #[error("entry `{}` {why}", show(.path))]
    Entry {
        /// The entry's path as the archive has it.
        path: Vec<u8>,
        /// What is wrong.
        why: EntryError,
    },
    /// Over a limit that belongs to no one entry.
    #[error("the layer {0}")]
    Limit(String),
}

/// What is wrong with an entry.
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
    #[error("lies behind too many symbolic links")]
    SymlinkLoop,
    #[error("is a hard link to `{}`, which is a directory", show(.0))]
    LinkToDir(Vec<u8>),
    #[error("is a hard link that leads back to itself by way of `{}`", show(.0))]
    LinkCycle(Vec<u8>),
    #[error("is one of more than {0} files and directories")]
    Inodes(u64),
    #[error("has a NUL byte in its link target")]
    TargetNul,
    #[error("is a link that does not say to what")]
    NoTarget,
    #[error("has a link target of {0} bytes, 4095 is the most a file system takes")]
    TargetTooLong(usize),
    #[error("has a header field that is no number: {0}")]
    Number(&'static str),
    #[error("has an owner beyond 32 bits: {0}")]
    Owner(u64),
    #[error("is larger than a file can be: {0} bytes")]
    TooLarge(u64),
    #[error("is a device that Linux cannot have: {0}:{1}")]
    Device(u32, u32),
    #[error("has malformed PAX records")]
    Pax,
    #[error("has {0} bytes of extension header, {1} is the most")]
    Extension(u64, u64),
    #[error("has a malformed sparse map: {0}")]
    Sparse(&'static str),
    #[error("has more than {0} pieces of data")]
    Extents(usize),
    #[error("has extended attributes that no file can hold: {0}")]
    Xattr(&'static str),
    #[error("has the unknown type `{}`", .0.escape_ascii())]
    Type(u8),
}

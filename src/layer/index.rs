//! The index: the inode tree of a layer or an image as one flat file, used through a memory mapping.
//!
//! One format serves both. A *layer's* index describes one tar; it may hold whiteouts, opaque and implicit directories,
//! and hard links whose target only a lower layer can have. An *image's* index is the merge of its layers' indexes: it
//! has none of these, and every inode names the layer with its data. Opening an index hashes the mapping once, which
//! takes about 1.5 ms for an image of 100,000 entries.
//!
//! # Format (version [`FORMAT`], little-endian, packed)
//!
//! | part | record |
//! | --- | --- |
//! | header | [`Header`] |
//! | inodes | [`Node`]; inode 0 is the root; numbered breadth first, so a directory's children lie together |
//! | directory entries | [`Dirent`], those of one directory together and sorted by name |
//! | extents | [`Extent`], those of one sparse file together and ascending |
//! | strings | names, link targets |
//! | xattrs | per set: u16 count, then per attribute u16 name length, u32 value length, name, value |
//!
//! The header has a SHA-256 of itself and an XXH3 of the rest; [`Index::open`] verifies both, over the same mapping
//! that is used afterwards. They detect damage, not forgery: whoever can write to the store can recompute both. Every
//! access is bounds-checked too, so a bad reference in an index returns [`IndexError`] and never panics.
//!
//! Version 1 had a SHA-256 of the rest in place of the XXH3, which was too slow to verify at every mount.

use crate::digest::Digest;
use crate::meta::{Kind, Time};
use crate::sys::Bytes;
use sha2::Digest as _;
use std::hash::Hasher as _;
use std::ops::Range;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of the format. An index of another version is rebuilt from its tar.
pub const FORMAT: u32 = 2;

const MAGIC: [u8; 8] = *b"plyfsidx";

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// An opaque directory: it hides the content of lower layers.
    pub const OPAQUE: u16 = 1;
    /// A directory without an entry in the layer: it is only implied by the path of another entry.
    pub const IMPLICIT: u16 = 2;
    /// A regular file whose data is a list of extents.
    pub const SPARSE: u16 = 4;
    /// An implicit directory in which the layer has only whiteouts and opaque markers: a deletion creates nothing, so
    /// the directory is part of the image only if a lower layer has it.
    pub const BARE: u16 = 8;
}

/// Bits of `Header::flags`.
pub mod index_flags {
    /// Some inode has a POSIX ACL.
    pub const ACLS: u32 = 1;
    /// Some hard link's target is not in the layer.
    pub const FOREIGN_LINKS: u32 = 2;
}

/// The inode number of a whiteout in a [`Dirent`].
pub const WHITEOUT: u32 = u32::MAX;

/// What an index describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Of {
    /// One layer.
    Layer,
    /// The merge of an image's layers.
    Image,
}

/// The file header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct Header {
    pub(super) magic: [u8; 8],
    pub(super) format: U32,
    pub(super) of: U32,
    pub(super) flags: U32,
    pub(super) nodes: U32,
    pub(super) dirents: U32,
    pub(super) extents: U32,
    pub(super) strings: U64,
    pub(super) xattrs: U64,
    pub(super) blocks: U64,
    pub(super) source: [u8; 136],
    pub(super) body_hash: U64,
    pub(super) header_hash: [u8; 32],
}

/// One inode, 64 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct Node {
    /// `st_mode`; type bits 0 for a hard link whose target is not in the layer (the path is its target).
    pub mode: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// `st_nlink`.
    pub nlink: U32,
    /// `st_size` of a regular file.
    pub size: U64,
    /// Modification time, seconds.
    pub mtime_sec: I64,
    /// Modification time, nanoseconds.
    pub mtime_nsec: U32,
    /// 0, or one more than the offset of the inode's set in the xattrs.
    pub xattrs: U32,
    /// File: offset of its data in the tar, or the number of its first extent. Directory: the number of its first
    /// entry. Symbolic link: offset of its target in the strings. Device: its number.
    pub data: U64,
    /// Number of extents or entries, or the length of the target in bytes.
    pub count: U32,
    /// The layer that has the data; the bottom one is 0.
    pub layer: U16,
    /// [`node_flags`].
    pub flags: U16,
    /// Directory: the inode number of the parent; the root is its own parent.
    pub parent: U32,
    /// 4 KiB blocks of data, saturating.
    pub blocks: U32,
}

/// A directory entry.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct Dirent {
    /// Offset of the name in the strings.
    pub name: U32,
    /// The inode number, or [`WHITEOUT`].
    pub node: U32,
    /// Length of the name.
    pub name_len: U16,
    /// The type bits of the inode, shifted right by 12.
    pub kind: U16,
}

/// A data extent of a sparse file; between extents are holes, which read as zeros.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct Extent {
    /// Offset in the file.
    pub logical: U64,
    /// Offset in the tar.
    pub offset: U64,
    /// Length in bytes.
    pub len: U64,
}

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not an index, or one that a crash or a disk has damaged.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// Written by another version of plyfs.
    #[error("the index has format {0}, this plyfs reads format {FORMAT}")]
    Format(u32),
}

/// An open index: a memory mapping that any number of threads may read.
pub struct Index {
    bytes: Bytes,
    header: Header,
    source: Digest,
    nodes: Range<usize>,
    dirents: Range<usize>,
    extents: Range<usize>,
    strings: Range<usize>,
    xattrs: Range<usize>,
}

const BROKEN_REFERENCE: IndexError = IndexError::Damaged("a reference points outside the index");

impl Index {
    /// Opens an index, and verifies both hashes.
    pub fn open(bytes: Bytes) -> Result<Index, IndexError> {
        let index = Index::open_unverified(bytes)?;
        if index.body_is_intact() { Ok(index) } else { Err(IndexError::Damaged("its checksum is wrong")) }
    }

    /// Opens an index and verifies only its header: the header's hash, and that the parts add up to the file's length.
    /// For tests with a damaged body; all other code must use [`Index::open`].
    #[doc(hidden)]
    pub fn open_unverified(bytes: Bytes) -> Result<Index, IndexError> {
        let (header, _) = Header::read_from_prefix(&bytes).map_err(|_| IndexError::Damaged("it is too short"))?;
        if header.magic != MAGIC {
            return Err(IndexError::Damaged("it has no index header"));
        }
        if header.format.get() != FORMAT {
            return Err(IndexError::Format(header.format.get()));
        }
        if header.header_hash != header.hash() {
            return Err(IndexError::Damaged("its header's checksum is wrong"));
        }
        let source = header.source().ok_or(IndexError::Damaged("it has no DiffID or ChainID"))?;
        let ranges = header.ranges().ok_or(IndexError::Damaged("its sections are too large"))?;
        let [nodes, dirents, extents, strings, xattrs] = ranges;
        if xattrs.end != bytes.len() || nodes.is_empty() {
            return Err(IndexError::Damaged("its sections do not add up to its length"));
        }
        Ok(Index { bytes, header, source, nodes, dirents, extents, strings, xattrs })
    }

    /// Returns what the index was made from: the DiffID of a layer, the chain ID of an image.
    pub fn source(&self) -> &Digest {
        &self.source
    }

    /// Returns whether it describes a layer or an image.
    pub fn of(&self) -> Of {
        if self.header.of.get() == 0 { Of::Layer } else { Of::Image }
    }

    /// [`index_flags`].
    pub fn flags(&self) -> u32 {
        self.header.flags.get()
    }

    /// Returns the total of 4 KiB blocks of all files.
    pub fn blocks(&self) -> u64 {
        self.header.blocks.get()
    }

    /// Returns all inodes, the root first.
    pub fn nodes(&self) -> &[Node] {
        self.records(&self.nodes)
    }

    /// Returns the number of directory entries.
    pub fn entries(&self) -> u32 {
        self.header.dirents.get()
    }

    /// Returns an inode.
    pub fn node(&self, id: u32) -> Result<&Node, IndexError> {
        self.nodes().get(id as usize).ok_or(BROKEN_REFERENCE)
    }

    /// Returns a directory's entries, sorted by name; empty for anything else.
    pub fn children(&self, dir: &Node) -> Result<&[Dirent], IndexError> {
        if dir.kind() != Some(Kind::Dir) {
            return Ok(&[]);
        }
        slice(self.records(&self.dirents), dir.data.get(), u64::from(dir.count.get()))
    }

    /// Returns a sparse file's extents, ascending.
    pub fn extents(&self, file: &Node) -> Result<&[Extent], IndexError> {
        slice(self.records(&self.extents), file.data.get(), u64::from(file.count.get()))
    }

    /// Returns an entry's name.
    pub fn name(&self, entry: &Dirent) -> Result<&[u8], IndexError> {
        slice(&self.bytes[self.strings.clone()], u64::from(entry.name.get()), u64::from(entry.name_len.get()))
    }

    /// Returns a symbolic link's target, or the target path of a hard link to an inode of a lower layer.
    pub fn target(&self, link: &Node) -> Result<&[u8], IndexError> {
        slice(&self.bytes[self.strings.clone()], link.data.get(), u64::from(link.count.get()))
    }

    /// Finds the entry `name` of `dir`.
    pub fn find(&self, dir: &Node, name: &[u8]) -> Result<Option<&Dirent>, IndexError> {
        let entries = self.children(dir)?;
        let mut low = 0;
        let mut high = entries.len();
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(&entries[middle])?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(&entries[middle])),
            }
        }
        Ok(None)
    }

    /// Returns an inode's extended attributes.
    pub fn xattrs(&self, node: &Node) -> Result<Xattrs<'_>, IndexError> {
        let set = match node.xattrs.get() {
            0 => &[0, 0][..],
            at => self.bytes[self.xattrs.clone()].get(at as usize - 1..).ok_or(BROKEN_REFERENCE)?,
        };
        let (count, rest) = U16::read_from_prefix(set).map_err(|_| BROKEN_REFERENCE)?;
        Ok(Xattrs { left: count.get(), rest })
    }

    fn records<T: FromBytes + Immutable + KnownLayout>(&self, range: &Range<usize>) -> &[T] {
        // The ranges are whole multiples of the record size, and T has no alignment, so this cannot fail.
        <[T]>::ref_from_bytes(&self.bytes[range.clone()]).unwrap_or(&[])
    }

    /// Whether the hash of everything after the header matches.
    pub(super) fn body_is_intact(&self) -> bool {
        let mut hash = BodyHash::default();
        hash.update(&self.bytes[size_of::<Header>()..]);
        hash.finish() == self.header.body_hash
    }
}

/// The running hash of everything after the header.
#[derive(Default)]
pub(super) struct BodyHash(twox_hash::XxHash3_64);

impl BodyHash {
    pub(super) fn update(&mut self, part: &[u8]) {
        self.0.write(part);
    }

    pub(super) fn finish(&self) -> U64 {
        self.0.finish().into()
    }
}

fn slice<T>(all: &[T], start: u64, count: u64) -> Result<&[T], IndexError> {
    let start = usize::try_from(start).map_err(|_| BROKEN_REFERENCE)?;
    let count = usize::try_from(count).map_err(|_| BROKEN_REFERENCE)?;
    let end = start.checked_add(count).ok_or(BROKEN_REFERENCE)?;
    all.get(start..end).ok_or(BROKEN_REFERENCE)
}

impl Header {
    pub(super) fn new(of: Of, source: &Digest) -> Header {
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.format = FORMAT.into();
        header.of = u32::from(of == Of::Image).into();
        let text = source.to_string();
        header.source[..text.len()].copy_from_slice(text.as_bytes());
        header
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        let bytes = self.as_bytes();
        sha2::Sha256::digest(&bytes[..bytes.len() - 32]).into()
    }

    fn source(&self) -> Option<Digest> {
        let end = self.source.iter().position(|b| *b == 0)?;
        str::from_utf8(&self.source[..end]).ok()?.parse().ok()
    }

    /// Returns the byte ranges of the parts, in their order.
    fn ranges(&self) -> Option<[Range<usize>; 5]> {
        let mut at = size_of::<Header>();
        let mut part = |count: u64, size: usize| {
            let start = at;
            at = at.checked_add(usize::try_from(count).ok()?.checked_mul(size)?)?;
            Some(start..at)
        };
        Some([
            part(self.nodes.get().into(), size_of::<Node>())?,
            part(self.dirents.get().into(), size_of::<Dirent>())?,
            part(self.extents.get().into(), size_of::<Extent>())?,
            part(self.strings.get(), 1)?,
            part(self.xattrs.get(), 1)?,
        ])
    }
}

impl Node {
    /// Returns the kind; `None` for a hard link to an inode of a lower layer.
    pub fn kind(&self) -> Option<Kind> {
        Kind::of(self.mode.get())
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == Some(Kind::Dir)
    }

    /// Whether all the given [`node_flags`] are set.
    pub fn has(&self, flags: u16) -> bool {
        self.flags.get() & flags == flags
    }

    /// Returns the modification time.
    pub fn mtime(&self) -> Time {
        Time { sec: self.mtime_sec.get(), nsec: self.mtime_nsec.get() }
    }
}

impl Dirent {
    /// Whether the entry is a whiteout.
    pub fn is_whiteout(&self) -> bool {
        self.node.get() == WHITEOUT
    }

    /// Returns the kind of the entry's inode.
    pub fn kind(&self) -> Option<Kind> {
        Kind::of(u32::from(self.kind.get()) << 12)
    }
}

/// Iterator over the extended attributes of an inode, as names and values; an item is an error if the index is damaged.
pub struct Xattrs<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let item = take_xattr(&mut self.rest).ok_or(BROKEN_REFERENCE);
        if item.is_err() {
            self.left = 0;
        }
        Some(item)
    }
}

fn take_xattr<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (name_len, tail) = U16::read_from_prefix(rest).ok()?;
    let (value_len, tail) = U32::read_from_prefix(tail).ok()?;
    let (name, tail) = tail.split_at_checked(name_len.get().into())?;
    let (value, tail) = tail.split_at_checked(value_len.get() as usize)?;
    *rest = tail;
    Some((name, value))
}

//! Records of the EROFS format (fs/erofs/erofs_fs.h), and plyfs's own header in front of them.

use crate::digest::Digest;
use crate::meta::Kind;
use crate::sys::Bytes;
use sha2::Digest as _;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of what plyfs writes; part of the file's name.
pub const FORMAT: u32 = 1;
/// Flag of an image that has names or attributes which kernel overlayfs would take for its own marks.
pub const OVERLAY_MARKS: u32 = 1;

/// Block size: 512, the unit of tars.
pub(super) const BLOCK_BITS: u8 = 9;
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Offset of the superblock.
pub(super) const SUPER_OFFSET: usize = 1024;
/// Inode numbers are offsets in these units.
pub(super) const SLOT: u64 = 32;

const MAGIC: [u8; 8] = *b"PLYEROFS";
const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
/// EROFS_FEATURE_COMPAT_MTIME.
const HAS_MTIME: u32 = 2;
/// EROFS_FEATURE_INCOMPAT_CHUNKED_FILE and EROFS_FEATURE_INCOMPAT_DEVICE_TABLE.
const CHUNKED_WITH_DEVICES: u32 = 4 | 8;

/// plyfs's own header, in the 1024 bytes that the kernel ignores.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    format: U32,
    flags: U32,
    /// Length of the file.
    length: U64,
    /// XXH3 of everything behind this header.
    body_hash: U64,
    /// Chain ID of the image, as text.
    source: [u8; 136],
    /// SHA-256 of the fields before.
    header_hash: [u8; 32],
}

/// The superblock.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct Super {
    magic: U32,
    checksum: U32,
    feature_compat: U32,
    block_bits: u8,
    extra_slots: u8,
    pub root_nid: U16,
    pub inodes: U64,
    build_time: U64,
    build_time_nsec: U32,
    /// Length of the image in blocks.
    pub blocks: U32,
    meta_block: U32,
    pub xattr_block: U32,
    pub uuid: [u8; 16],
    volume_name: [u8; 16],
    feature_incompat: U32,
    algorithms: U16,
    pub devices: U16,
    /// Offset of the device table, in units of a slot.
    device_slot: U16,
    dir_block_bits: u8,
    xattr_prefixes: u8,
    xattr_prefix_start: U32,
    packed_nid: U64,
    xattr_filter: u8,
    reserved: [u8; 23],
}

/// A device slot.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct Device {
    pub tag: [u8; 64],
    pub blocks: U32,
    mapped_block: U32,
    reserved: [u8; 56],
}

/// An inode in the extended form.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct Inode {
    format: U16,
    /// Length of the attributes: (bytes - 12) / 4 + 1.
    pub xattr_count: U16,
    pub mode: U16,
    reserved: U16,
    pub size: U64,
    /// First block, device number, or the chunk format.
    pub detail: U32,
    /// For stat(2) with 32 bits.
    pub ino: U32,
    pub uid: U32,
    pub gid: U32,
    pub mtime: U64,
    pub mtime_nsec: U32,
    pub nlink: U32,
    reserved2: [u8; 16],
}

/// Where an inode's data is (the `datalayout` in its format).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// In whole blocks.
    Plain = 0,
    /// In whole blocks, and the rest behind the inode.
    Inline = 2,
    /// In chunks.
    Chunks = 4,
}

/// A chunk index.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct ChunkIndex {
    block_high: U16,
    pub device: U16,
    pub block: U32,
}

/// A directory entry.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct Entry {
    pub nid: U64,
    /// Offset of the name in the block.
    pub name: U16,
    pub kind: u8,
    reserved: u8,
}

pub(super) const INODE: u64 = size_of::<Inode>() as u64;
pub(super) const ENTRY: usize = size_of::<Entry>();
pub(super) const CHUNK_INDEX: u64 = size_of::<ChunkIndex>() as u64;

// The sizes that the kernel's header states.
const _: () = assert!(size_of::<Super>() == 128 && size_of::<Device>() == 128 && size_of::<Inode>() == 64);
const _: () = assert!(size_of::<ChunkIndex>() == 8 && size_of::<Entry>() == 12 && size_of::<Header>() <= SUPER_OFFSET);

impl Super {
    pub fn new() -> Super {
        Super {
            magic: SUPER_MAGIC.into(),
            feature_compat: HAS_MTIME.into(),
            block_bits: BLOCK_BITS,
            feature_incompat: CHUNKED_WITH_DEVICES.into(),
            device_slot: (((SUPER_OFFSET + size_of::<Super>()) / size_of::<Device>()) as u16).into(),
            ..Super::new_zeroed()
        }
    }
}

impl Device {
    pub fn new(diff_id: &Digest, blocks: u32) -> Device {
        let mut tag = [0; 64];
        let hex = diff_id.hex().as_bytes();
        let most = hex.len().min(tag.len());
        tag[..most].copy_from_slice(&hex[..most]);
        Device { tag, blocks: blocks.into(), ..Device::new_zeroed() }
    }
}

impl Inode {
    pub fn new(layout: Layout) -> Inode {
        // Bit 0 is the extended form.
        Inode { format: ((layout as u16) << 1 | 1).into(), ..Inode::new_zeroed() }
    }
}

impl ChunkIndex {
    pub const HOLE: ChunkIndex =
        ChunkIndex { block_high: U16::new(u16::MAX), device: U16::new(0), block: U32::new(u32::MAX) };

    pub fn new(device: u16, block: u32) -> ChunkIndex {
        ChunkIndex { block_high: 0.into(), device: device.into(), block: block.into() }
    }
}

impl Entry {
    pub fn new(nid: u64, name: usize, kind: Option<Kind>) -> Entry {
        // FT_* of linux/fs_types.h.
        let kind = match kind {
            Some(Kind::File) => 1,
            Some(Kind::Dir) => 2,
            Some(Kind::Char) => 3,
            Some(Kind::Block) => 4,
            Some(Kind::Fifo) => 5,
            Some(Kind::Socket) => 6,
            Some(Kind::Symlink) => 7,
            None => 0,
        };
        Entry { nid: nid.into(), name: (name as u16).into(), kind, reserved: 0 }
    }
}

/// Why a file is not an EROFS image of plyfs, or a damaged one.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The content does not match the format or a checksum.
    #[error("the EROFS image is damaged: {0}")]
    Damaged(&'static str),
    /// Written by another version of plyfs.
    #[error("the EROFS image has format {0}, this plyfs reads format {FORMAT}")]
    Format(u32),
}

/// An EROFS image whose checksums have been verified.
#[derive(Debug)]
pub struct Opened {
    /// Chain ID of the image.
    pub source: Digest,
    /// [`OVERLAY_MARKS`].
    pub flags: u32,
}

/// Verifies the header and the checksum of a whole file. The checksums detect damage, not forgery.
pub fn open(bytes: &Bytes) -> Result<Opened, HeaderError> {
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| HeaderError::Damaged("it is too short"))?;
    if header.magic != MAGIC {
        return Err(HeaderError::Damaged("its first bytes are not those of an EROFS image of plyfs"));
    }
    if header.format.get() != FORMAT {
        return Err(HeaderError::Format(header.format.get()));
    }
    if header.header_hash != header.hash() {
        return Err(HeaderError::Damaged("the checksum of its header is wrong"));
    }
    let body = bytes.get(size_of::<Header>()..).unwrap_or_default();
    if header.length.get() != bytes.len() as u64 || header.body_hash.get() != hash_of(body) {
        return Err(HeaderError::Damaged("its checksum is wrong"));
    }
    let end = header.source.iter().position(|byte| *byte == 0).unwrap_or(header.source.len());
    let source = str::from_utf8(&header.source[..end]).ok().and_then(|text| text.parse().ok());
    Ok(Opened { source: source.ok_or(HeaderError::Damaged("it has no chain ID"))?, flags: header.flags.get() })
}

impl Header {
    /// Describes a whole image, whose first bytes are still free.
    pub fn of(image: &[u8], source: &Digest, flags: u32) -> Header {
        let mut header = Header { magic: MAGIC, format: FORMAT.into(), flags: flags.into(), ..Header::new_zeroed() };
        let text = source.to_string();
        header.source[..text.len()].copy_from_slice(text.as_bytes());
        header.length = (image.len() as u64).into();
        header.body_hash = hash_of(&image[size_of::<Header>()..]).into();
        header.header_hash = header.hash();
        header
    }

    fn hash(&self) -> [u8; 32] {
        let bytes = self.as_bytes();
        sha2::Sha256::digest(&bytes[..bytes.len() - 32]).into()
    }
}

fn hash_of(body: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(body)
}

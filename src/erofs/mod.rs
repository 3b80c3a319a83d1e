//! EROFS images: an image's merged index in the kernel's read-only file system format (metadata only). The file data
//! stays in the layers' tars, which are extra devices of the mount. A pure writer; no mount, and no I/O except for the
//! few blocks that must be copied out of the tars.
//!
//! # On-disk format
//!
//! Little-endian. The kernel's definitions are in fs/erofs/erofs_fs.h, and Documentation/filesystems/erofs.rst explains
//! them. The block size is 512 bytes, the unit of tars, so the data of every file of a tar begins at a block.
//!
//! | offset | part |
//! | --- | --- |
//! | 0 | plyfs's own header (the kernel ignores the first 1024 bytes): magic `PLYEROFS`, u32 format version, u32 flags, u64 length of the file, u64 XXH3 of all that follows the header, the chain ID as text in 136 bytes, SHA-256 of these fields |
//! | 1024 | superblock |
//! | 1152 | a device slot of 128 bytes for each layer, the bottom one first: its DiffID (hexadecimal) and its length |
//! | | inodes, in the order of the index, each at a multiple of 32 bytes: inode, attributes, chunk indexes or inline data |
//! | next block | shared extended attributes: those that several inodes have |
//! | next block | blocks of directories, long link targets and copied data |
//!
//! - An inode's number (nid) is its offset divided by 32. The root comes first, as its number has only 16 bits. All
//!   inodes have the extended form (64 bytes), the only one with owners and a time of its own.
//! - A file is chunk-based: an array of (device, block) pairs, one for each chunk, at the next multiple of 8. Device 1
//!   is the bottom layer's tar, device 0 is the image itself. A contiguous file has one chunk. A sparse file has the
//!   chunk size that makes array and copied blocks the smallest (module `chunks`); holes have no block.
//! - The kernel reads whole blocks. So the end of a file is copied if its tar ends without padding, and so is a block
//!   of a sparse file that holds data and a hole.
//! - A directory is blocks of 12-byte entries and names, `.` and `..` among them, sorted by bytes. The last block and a
//!   link's target are stored inline behind the inode if they fit into the rest of its block.
//!
//! # What the format cannot hold
//!
//! [`write()`] refuses a tar of more than 2 TiB, a value of an extended attribute of 64 KiB (the limit is one byte less),
//! and sparse files whose arrays would take more than 256 MiB. Extended attributes outside the namespaces
//! `user.`, `trusted.`, `security.` and POSIX ACLs are left out: Linux would not show them.

mod chunks;
mod format;
mod input;
mod names;
mod plan;
mod writer;
mod xattrs;

pub use format::{FORMAT, HeaderError, OVERLAY_MARKS, Opened, open};
pub use input::{Layer, Tar, WriteError};
pub use writer::{has_overlay_marks, write};

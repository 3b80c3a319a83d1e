//! Memory shared between processes: 64-bit words that outlive the process that wrote them.

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

/// Words of memory, all 0 at first, that this process shares with every process forked from it. Memory is used only
/// for the pages that have been written to.
pub struct SharedWords {
    map: MmapRaw,
    count: usize,
    file: File,
}

impl SharedWords {
    /// Allocates `count` words.
    pub fn new(count: usize) -> io::Result<SharedWords> {
        let file = File::from(memfd_create("plyfs", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len((count * size_of::<AtomicU64>()) as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        SharedWords::of_file(file, count)
    }

    /// Maps the words that another process has allocated, with that descriptor. An error if they are not so many.
    pub fn of_file(file: File, count: usize) -> io::Result<SharedWords> {
        let length = count * size_of::<AtomicU64>();
        let sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        if !sealed || file.metadata()?.len() != length as u64 {
            return Err(io::Error::other("the shared memory is not what it should be"));
        }
        let map = MmapOptions::new().len(length).map_raw(&file)?;
        Ok(SharedWords { map, count, file })
    }

    /// Returns the descriptor, for [`SharedWords::of_file`].
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, has `count` words, of which any bytes are valid values, and lives as long
        // as `self`. Its file is sealed, so nothing can cut it short, and whoever shares it
        // accesses it by atomic operations too, as this is the only access to it.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
    }
}

//! Memory shared between processes: 64-bit words that outlive the process that wrote them.

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

/// Words of memory, all 0 at first, that this process shares with every process forked from it. Memory is used only
/// for the pages that have been written to.
pub struct SharedWords {
    map: MmapRaw,
    count: usize,
}

impl SharedWords {
    /// Allocates `count` words.
    pub fn new(count: usize) -> io::Result<SharedWords> {
        let length = count * size_of::<AtomicU64>();
        let file = File::from(memfd_create("plyfs", MemfdFlags::CLOEXEC)?);
        file.set_len(length as u64)?;
        let map = MmapOptions::new().len(length).map_raw(&file)?;
        Ok(SharedWords { map, count })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, has `count` words, of which any bytes are valid values, and lives as long
        // as `self`. Its file has no name and only this length, so nothing can cut it short, and whoever shares it
        // accesses it by atomic operations too, as this is the only access to it.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
    }
}

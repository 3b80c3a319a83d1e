//! An LRU cache of open descriptors by inode number, bounded in size. A descriptor is reference-counted, so eviction
//! does not close it under its users.

use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A shared descriptor, closed when its last reference is dropped.
pub type Handle = Arc<OwnedFd>;

/// The cache.
pub struct Handles {
    open: Mutex<LruCache<u64, Handle>>,
}

impl Handles {
    /// Creates a cache of at most `bound` descriptors.
    pub fn new(bound: usize) -> Handles {
        Handles { open: Mutex::new(LruCache::new(NonZeroUsize::new(bound).unwrap_or(NonZeroUsize::MIN))) }
    }

    /// Returns the descriptor of an inode, if it is cached.
    pub fn get(&self, ino: u64) -> Option<Handle> {
        self.open.lock().get(&ino).cloned()
    }

    /// Adds a descriptor, and evicts the least recently used one if the cache is full.
    pub fn put(&self, ino: u64, handle: Handle) {
        // The evicted descriptor is closed after the lock is released.
        let _fallen = self.open.lock().push(ino, handle);
    }

    /// Removes the descriptor of an inode and returns it.
    pub fn take(&self, ino: u64) -> Option<Handle> {
        self.open.lock().pop(&ino)
    }
}

/// Wraps a descriptor for sharing.
pub fn share(fd: OwnedFd) -> Handle {
    Arc::new(fd)
}

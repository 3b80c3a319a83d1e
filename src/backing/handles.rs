//! Open descriptors of objects, by number: bounded, the one used least recently goes first. A
//! descriptor has one owner, which whoever is using it shares.

use lru::LruCache;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// A descriptor that closes when the last who uses it lets go.
pub type Handle = Arc<OwnedFd>;

/// The cache.
pub struct Handles {
    open: Mutex<LruCache<u64, Handle>>,
}

impl Handles {
    /// Keeps at most `bound` descriptors.
    pub fn new(bound: usize) -> Handles {
        Handles { open: Mutex::new(LruCache::new(NonZeroUsize::new(bound).unwrap_or(NonZeroUsize::MIN))) }
    }

    /// The descriptor of that inode, if it is open.
    pub fn get(&self, ino: u64) -> Option<Handle> {
        self.lock().get(&ino).cloned()
    }

    /// Keeps a descriptor.
    pub fn put(&self, ino: u64, handle: Handle) {
        // What falls out is closed behind the lock.
        let _fallen = self.lock().push(ino, handle);
    }

    /// Forgets one, and gives it to the caller.
    pub fn take(&self, ino: u64) -> Option<Handle> {
        self.lock().pop(&ino)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Handle>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A descriptor to share.
pub fn share(fd: OwnedFd) -> Handle {
    Arc::new(fd)
}

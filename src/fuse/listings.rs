//! Directories whose entries the kernel has begun to cache: it must be told of changes meanwhile.
//!
//! The kernel's cache of a directory's entries (FOPEN_CACHE_DIR, which FUSE_NO_OPENDIR_SUPPORT implies) is filled by a
//! listing, and used by all once that one has reached the end. Whether the directory has changed is checked only where a
//! listing begins. So a listing that began after a change went on in a cache from before it, and missed a new name.

use parking_lot::Mutex;
use std::collections::HashSet;

/// The directories with listings that have begun and not reached the end.
#[derive(Default)]
pub struct Listings {
    begun: Mutex<HashSet<u64>>,
    /// The directories of which the kernel has been told since this server began, if earlier ones have served listings;
    /// which those were is not known.
    told: Option<Mutex<HashSet<u64>>>,
}

impl Listings {
    /// Begins a server. `is_resumed`: earlier ones have served the mount.
    pub fn new(is_resumed: bool) -> Listings {
        Listings { begun: Mutex::default(), told: is_resumed.then(Mutex::default) }
    }

    /// Notes that a part of a listing was returned; an empty part is its end.
    pub fn note(&self, dir: u64, is_end: bool) {
        let mut begun = self.begun.lock();
        if is_end {
            begun.remove(&dir);
        } else {
            begun.insert(dir);
        }
    }

    /// Whether the kernel must be told now that a directory has changed; it need not be told again until a listing goes
    /// on.
    pub fn must_tell(&self, dir: u64) -> bool {
        let is_first = self.told.as_ref().is_some_and(|told| told.lock().insert(dir));
        self.begun.lock().remove(&dir) || is_first
    }

    /// Notes that the kernel has forgotten an inode, and so its cache.
    pub fn forget(&self, ino: u64) {
        self.begun.lock().remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_once_of_each_listing_under_way() {
        let listings = Listings::new(false);
        assert!(!listings.must_tell(5));
        listings.note(5, false);
        assert!(listings.must_tell(5) && !listings.must_tell(5));
        listings.note(5, false);
        listings.note(5, true);
        assert!(!listings.must_tell(5));
    }

    #[test]
    fn after_a_restart_it_is_told_once_of_every_directory() {
        let listings = Listings::new(true);
        assert!(listings.must_tell(5) && !listings.must_tell(5) && listings.must_tell(6));
    }
}

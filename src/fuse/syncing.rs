//! fsync in a worker of the FUSE server: at most one at a time, so that another worker stays free.

use std::sync::atomic::{AtomicBool, Ordering};

/// The right to run fsync in a worker instead of the pool; at most one worker has it.
pub struct Syncing<'a>(&'a AtomicBool);

impl<'a> Syncing<'a> {
    /// Returns `None` if another worker is in fsync.
    pub fn begin(flag: &'a AtomicBool) -> Option<Syncing<'a>> {
        (!flag.swap(true, Ordering::Relaxed)).then_some(Syncing(flag))
    }
}

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

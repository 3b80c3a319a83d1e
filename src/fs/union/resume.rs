//! Handover of a union from server to server: what must be left to the next server of the mount, and taking over what
//! the last one has left.

use super::Union;
use super::inode_table::{Data, Dir, Entry};
use super::rename::removed;
use crate::backing::{Handle, share};
use crate::fs::{FsError, Ino, ROOT};
use crate::handover::Handover;
use crate::meta::Kind;
use crate::sys;
use crate::whiteout::Mark;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many threads load an upper directory at most.
const MOST_LOADERS: usize = 8;

impl Union {
    /// Whether earlier servers of the mount have given the kernel references and inode numbers.
    pub(super) fn is_resumed(&self) -> bool {
        self.handover.as_ref().is_some_and(|handover| handover.is_resumed())
    }

    /// Takes over what the last server has left. The kernel knows inodes by their numbers only, so all directories of
    /// the upper are loaded first: afterwards an inode of the image that is not in the table is unchanged.
    pub(super) fn resume(&self, handover: &Handover) -> Result<(), FsError> {
        self.load_in_parallel()?;
        self.load_all()?;
        let mut table = self.table_mut();
        table.restore_serials();
        table.inherit();
        drop(table);
        for (number, ino) in handover.all_held()? {
            let handle = share(sys::adopt_descriptor(number));
            if self.table().get(ino).is_some_and(|entry| !entry.is_removed()) {
                // The server died before it removed the name.
                handover.release(&handle);
                continue;
            }
            let entry = self.held_entry(ino, handle)?;
            self.table_mut().insert(ino, entry);
        }
        for ino in handover.removed() {
            self.note_removed(ino)?;
        }
        Ok(())
    }

    /// Loads all directories of the upper by several threads: programs wait for it.
    fn load_in_parallel(&self) -> Result<(), FsError> {
        let workers = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_LOADERS));
        let mut level = vec![ROOT];
        while !level.is_empty() {
            let next = AtomicUsize::new(0);
            let load = || {
                while let Some(dir) = level.get(next.fetch_add(1, Ordering::Relaxed)) {
                    self.ensure_loaded(*dir)?;
                }
                Ok::<(), FsError>(())
            };
            std::thread::scope(|scope| {
                let others: Vec<_> = (1..workers.min(level.len())).map(|_| scope.spawn(load)).collect();
                let own = load();
                for other in others {
                    other.join().map_err(|_| FsError::Damaged("a thread that loads the upper directory failed"))??;
                }
                own
            })?;
            // Each directory that has been loaded may have more, which have not.
            level = self.table().unread();
        }
        Ok(())
    }

    /// Builds the table entry of an inode without names from its descriptor.
    fn held_entry(&self, ino: Ino, handle: Handle) -> Result<Entry, FsError> {
        let object = self.upper.object(handle.as_fd())?;
        let mut entry = Entry::new(object.kind, Some(object.raw.ino));
        match object.kind {
            Kind::Dir => {
                entry.dir = Some(Dir::new(None, Some(Default::default())));
            }
            Kind::File if self.upper.mark(handle.as_fd(), Mark::Metacopy)?.is_some() => {
                entry.data = if self.lower.has(ino) { Data::Lower(ino, object.raw.size) } else { Data::Missing };
            }
            _ => {}
        }
        entry.held = Some(handle);
        Ok(entry)
    }

    /// [`crate::fs::Fs::note_removed`].
    pub fn note_removed(&self, ino: Ino) -> Result<(), FsError> {
        if self.table().get(ino).is_none() && self.lower.has(ino) {
            let kind = self.lower.kind(ino)?;
            self.table_mut().insert(ino, removed(kind));
            self.leave_removed(ino);
        }
        Ok(())
    }

    /// Leaves to the next server that an inode of the image has no name.
    pub(super) fn leave_removed(&self, ino: Ino) {
        if let Some(handover) = &self.handover {
            handover.set_removed(ino, true);
        }
    }

    /// Leaves the descriptor of an inode that is about to lose its last name.
    pub(super) fn leave_descriptor(&self, ino: Ino, handle: &Handle) {
        if let Some(handover) = &self.handover
            && !handover.hold(handle, ino)
        {
            tracing::debug!("inode {ino} has no name and would not survive the death of this server");
        }
    }

    /// Takes [`Union::leave_descriptor`] back, before the descriptor is closed.
    pub(super) fn leave_no_descriptor(&self, handle: &Handle) {
        if let Some(handover) = &self.handover {
            handover.release(handle);
        }
    }

    /// Takes back what was left of an inode that the kernel has forgotten.
    pub(super) fn leave_nothing_of(&self, ino: Ino, entry: &Entry) {
        let Some(handover) = &self.handover else { return };
        handover.set_removed(ino, false);
        if let Some(handle) = &entry.held {
            handover.release(handle);
        }
    }
}
